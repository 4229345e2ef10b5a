"""Every kind of decode step of every family at its released size on one GPU, and one training update each.

    python benchmarks/gpu.py --out benchmarks/results/gpu      # on a GPU: 8 minutes at most
    python benchmarks/gpu.py --rehearse --out /tmp/gpu         # on a CPU, with the bundled models

Weights are random bfloat16. The runs are in order of worth: all families eager, then all compiled. Each runs
in a process of its own with a time cap, and each of its parts (batch 1, batch 16, an update) fails alone.
After every run the JSON and the table are written; parts without a figure are listed with the reason.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swiftmask.cli.bench_speed import BenchSpeed
from swiftmask.evaluate.memory import peak_memory_bytes, reset_peak_memory
from swiftmask.evaluate.speed import StepKind, Timing, measure_steps, seconds_of
from swiftmask.evaluate.summary import write_text
from swiftmask.recipes.provenance import measurement
from swiftmask.training.processes import to_device

BUDGET_S = 480
"""Of the whole command; a run that does not fit into what is left of it is not started."""

LEAST_S = 10
"""What any run needs to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What is measured.

    Attributes:
        models: names for `swiftmask bench speed`, in order of worth, with the images of a training update.
        options: of `swiftmask bench speed`.
        batches: images at a time in a decode step.
        matmul_sizes: sides of the square matmuls.
    """

    models: dict[str, int]
    options: dict[str, Any]
    batches: tuple[int, ...]
    repeats: int
    matmul_sizes: tuple[int, ...]


GPU = Scale(
    models={"lumina-dimoo": 1, "maskgit-512": 8, "mar-b": 16, "meissonic-1024": 4, "mar-h": 8},
    options={"random_weights": True, "dtype": "bfloat16", "device": "cuda"},
    batches=(1, 16),
    repeats=5,
    matmul_sizes=(4096, 8192),
)
REHEARSAL = Scale(
    models={"maskgit-scenes": 2, "mar-scenes": 2, "meissonic-scenes": 2, "dimoo-scenes": 2},
    options={"dtype": "bfloat16", "device": "cpu", "steps": 4, "full_steps": 2},
    batches=(1, 2),
    repeats=1,
    matmul_sizes=(64,),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One process: a model, eager with its training update, or compiled.

    Attributes:
        seconds: its time cap.
    """

    model: str
    compiled: bool
    seconds: int

    def parts(self, scale: Scale) -> list[str]:
        """What it measures, in order."""
        steps = [f"batch {batch}" for batch in scale.batches]
        return steps if self.compiled else [*steps, "update"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: a decode step of one kind, or a training update (forward, backward and AdamW).

    Attributes:
        kind: "full", "shortcut", "ml-cache", "marval" or "update".
        flops, peak_share: None for an update, whose operations are not counted.
    """

    model: str
    kind: str
    batch: int
    compiled: bool
    ms: float
    iqr_ms: float
    peak_memory_bytes: int
    flops: int | None = None
    peak_share: float | None = None
    matmul_peak_flops: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A part that gave no figure, and why."""

    model: str
    compiled: bool
    part: str
    reason: str


def runs(scale: Scale) -> list[Run]:
    """In order of worth."""
    eager = [Run(model=name, compiled=False, seconds=60) for name in scale.models]
    return eager + [Run(model=name, compiled=True, seconds=75) for name in scale.models]


def measure_run(run: Run, scale: Scale, emit: Callable[[Row | Failure], None]) -> None:
    """Measure the parts of a run one by one; one that fails is emitted as such, and the next one follows."""
    options = scale.options | {"compile": "default" if run.compiled else None, "repeats": scale.repeats}
    kinds = BenchSpeed(model=run.model, **options).kinds()
    for part in run.parts(scale):
        try:
            rows = (
                [update_row(run, kinds[0].model, scale)]
                if part == "update"
                else step_rows(run, kinds, scale, batch=int(part.removeprefix("batch ")))
            )
        except Exception as error:  # whatever it is, the other parts are still worth measuring
            emit(Failure(model=run.model, compiled=run.compiled, part=part, reason=_one_line(error)))
        else:
            for row in rows:
                emit(row)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def step_rows(run: Run, kinds: Sequence[StepKind], scale: Scale, *, batch: int) -> list[Row]:
    """The model's kinds of decode step, timed in turn beside the matmul peak."""
    peak, costs = measure_steps(
        kinds,
        dtype=_dtype_of(kinds[0].model),
        batch=batch,
        repeats=scale.repeats,
        matmul_sizes=scale.matmul_sizes,
    )
    return [
        Row(
            model=run.model,
            kind=cost.kind,
            batch=batch,
            compiled=run.compiled,
            ms=cost.ms,
            iqr_ms=cost.iqr_ms,
            peak_memory_bytes=cost.peak_memory_bytes,
            flops=cost.flops,
            peak_share=cost.peak_share,
            matmul_peak_flops=peak,
        )
        for cost in costs
    ]


def update_row(run: Run, model: Any, scale: Scale) -> Row:
    """One update of the base model's own objective: forward under autocast, backward, AdamW."""
    batch, device, dtype = scale.models[run.model], model.device, _dtype_of(model)
    trainer, drawn = TRAINERS[model.spec.name](model, batch)
    parameters = list(trainer.train().parameters())
    trainer.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=device.type == "cuda")
    moved = to_device(drawn, device)

    def update() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = trainer(moved)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    update()
    reset_peak_memory(device)
    timing = Timing(tuple(seconds_of(update, device) for _ in range(scale.repeats)))
    memory = peak_memory_bytes(device)
    trainer.eval().requires_grad_(False)
    return Row(
        model=run.model,
        kind="update",
        batch=batch,
        compiled=run.compiled,
        ms=timing.median_ms,
        iqr_ms=timing.iqr_ms,
        peak_memory_bytes=memory,
    )


def _maskgit(model: Any, batch: int) -> tuple[nn.Module, object]:
    from swiftmask.models.maskgit.training import MaskedBatch, TransformerTrainer

    labels_B = torch.zeros(batch, dtype=torch.int64)
    drawn = MaskedBatch.draw(_codes(model, batch), labels_B, model.transformer.config, torch.Generator())
    return TransformerTrainer(model.transformer), drawn


def _mar(model: Any, batch: int) -> tuple[nn.Module, object]:
    from swiftmask.models.mar.training import MARTrainer, MaskedBatch, shared_mask_rate

    generator, spec = torch.Generator(), model.spec
    tokens_BLC = torch.randn(batch, spec.num_tokens, spec.channels)
    labels_B, rates_B = torch.zeros(batch, dtype=torch.int64), shared_mask_rate(batch, generator)
    return MARTrainer(model.network), MaskedBatch.draw(tokens_BLC, labels_B, rates_B, generator)


def _meissonic(model: Any, batch: int) -> tuple[nn.Module, object]:
    from swiftmask.models.meissonic.training import MaskedBatch, TransformerTrainer

    length = model.text_encoder.config.max_position_embeddings
    drawn = MaskedBatch.draw(
        _codes(model, batch).unflatten(1, model.spec.grid),
        torch.zeros(batch, length, dtype=torch.int64),
        torch.zeros(batch, 5),
        torch.Generator(),
        mask_id=model.spec.mask_id,
        null_T=torch.zeros(length, dtype=torch.int64),
    )
    return TransformerTrainer(model.transformer, model.text_encoder), drawn


def _dimoo(model: Any, batch: int) -> tuple[nn.Module, object]:
    from swiftmask.models.lumina_dimoo.training import BackboneTrainer, MaskedBatch

    prompts = [model.prompts.ids("a")] * batch
    codes_BL = _codes(model, batch).to(model.device)
    drawn = MaskedBatch.draw(codes_BL, prompts, model.prompts.null_ids, torch.Generator())
    return BackboneTrainer(model.backbone, model.layout), drawn


TRAINERS = {"maskgit": _maskgit, "mar": _mar, "meissonic": _meissonic, "lumina_dimoo": _dimoo}
"""By family: the training objective as a module, and a batch of random tokens for it."""


def _codes(model: Any, batch: int) -> Tensor:
    return torch.randint(model.spec.codebook_size, (batch, model.spec.num_tokens))


def _dtype_of(model: Any) -> torch.dtype:
    return next(model.parameters()).dtype


def _one_line(error: BaseException) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text[:200]}"


def supervise(
    scale: Scale, out: Path, budget_s: float, command_of: Callable[[Run, Path], Sequence[str]]
) -> dict[str, Any]:
    """Start the runs one after the other, and write the report after each of them.

    Args:
        out: the report's files without their suffixes (.json, .md).
        command_of: the command of a run's process, which appends its rows to a file as JSON lines.
    """
    started, rows, failures = time.monotonic(), list[Row](), list[Failure]()
    for run in runs(scale):
        left = budget_s - (time.monotonic() - started)
        found, reason = ([], f"not started: {left:.0f} s left of {budget_s:.0f} s")
        if left >= LEAST_S:
            seconds = min(run.seconds, left)
            found, reason = _in_own_process(lambda path, run=run: command_of(run, path), seconds)
        rows += [entry for entry in found if isinstance(entry, Row)]
        failures += [entry for entry in found if isinstance(entry, Failure)]
        failures += _missing(run, scale, found, reason)
        report = {
            **measurement(scale.options.get("device", "cpu")),
            "seconds": time.monotonic() - started,
            "budget_s": budget_s,
            "rows": [asdict(row) for row in rows],
            "failures": [asdict(failure) for failure in failures],
        }
        write_text(out.with_suffix(".json"), json.dumps(report, indent=2) + "\n")
        write_text(out.with_suffix(".md"), table(rows, failures, report))
    return report


def _in_own_process(
    command_of: Callable[[Path], Sequence[str]], seconds: float
) -> tuple[list[Row | Failure], str]:
    """What a process wrote before it ended or was stopped, and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.touch()
        try:
            ended = subprocess.run(command_of(path), timeout=seconds, stderr=subprocess.PIPE, text=True)
            said = next(reversed(ended.stderr.strip().splitlines()), "")
            reason = f"the process ended with code {ended.returncode}: {said[:200]}"
        except subprocess.TimeoutExpired:
            reason = f"stopped after {seconds:.0f} s"
        return list(_read_rows(path)), reason


def _read_rows(path: Path) -> Iterable[Row | Failure]:
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        yield Failure(**entry) if "reason" in entry else Row(**entry)


def _missing(run: Run, scale: Scale, found: Sequence[Row | Failure], reason: str) -> list[Failure]:
    """Parts that a run said nothing about."""
    told = {entry.part if isinstance(entry, Failure) else _part_of(entry) for entry in found}
    return [
        Failure(model=run.model, compiled=run.compiled, part=part, reason=reason)
        for part in run.parts(scale)
        if part not in told
    ]


def _part_of(row: Row) -> str:
    return "update" if row.kind == "update" else f"batch {row.batch}"


def table(rows: Sequence[Row], failures: Sequence[Failure], report: dict[str, Any]) -> str:
    """The figures in Markdown: one line for each model, kind of step and batch."""
    where = f"{report['machine']}, commit {report['commit']}, {report['date']}"
    lines = [
        f"{where}, {report['seconds']:.0f} s in all.",
        "Times are of the whole batch; `of peak` is the eager step's share of the fastest matmul.",
        "",
        "| model | step | batch | eager ms | compiled ms | GB | of peak |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    by_key = {(row.model, row.kind, row.batch, row.compiled): row for row in rows}
    for model, kind, batch in dict.fromkeys((row.model, row.kind, row.batch) for row in rows):
        eager, compiled = (by_key.get((model, kind, batch, flag)) for flag in (False, True))
        shown = eager or compiled
        assert shown is not None
        share = "" if eager is None or eager.peak_share is None else f"{100 * eager.peak_share:.0f} %"
        times = ["" if row is None else f"{row.ms:.2f}" for row in (eager, compiled)]
        memory = f"{shown.peak_memory_bytes / 1e9:.1f}"
        lines.append(f"| {' | '.join([model, kind, str(batch), *times, memory, share])} |")
    lines += ["", *(_sentence(failure) for failure in failures)] if failures else []
    return "\n".join(lines) + "\n"


def _sentence(failure: Failure) -> str:
    how = "compiled" if failure.compiled else "eager"
    return f"* No figure for {failure.model}, {how}, {failure.part}: {failure.reason}"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with the bundled models")
    parser.add_argument("--only", nargs="+", default=[], help="models, of those there are")
    parser.add_argument("--seconds", type=float, default=BUDGET_S, help="time budget of everything")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="the report, without .json and .md")
    parser.add_argument("--run", nargs=3, metavar=("MODEL", "HOW", "ROWS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    scale = REHEARSAL if chosen.rehearse else GPU
    if unknown := sorted(set(chosen.only) - set(scale.models)):
        parser.error(f"--only: unknown model {', '.join(unknown)}: choose from {', '.join(scale.models)}")
    if not chosen.rehearse and not torch.cuda.is_available():
        parser.error("this PyTorch sees no GPU: use --rehearse to try the command on the CPU")
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    chosen = _arguments(argv)
    scale = REHEARSAL if chosen.rehearse else GPU
    if chosen.only:
        scale = replace(scale, models={name: scale.models[name] for name in chosen.only})
    if chosen.run is not None:
        _child(scale, *chosen.run)
        return

    def command_of(run: Run, path: Path) -> list[str]:
        how = "compiled" if run.compiled else "eager"
        rehearse = ["--rehearse"] if chosen.rehearse else []
        return [sys.executable, os.path.abspath(__file__), *rehearse, "--run", run.model, how, str(path)]

    report = supervise(scale, chosen.out, chosen.seconds, command_of)
    print(chosen.out.with_suffix(".md").read_text(), end="")
    if not report["rows"]:
        raise SystemExit("nothing could be measured: the reasons are above")


def _child(scale: Scale, model: str, how: str, rows: str) -> None:
    """One run in this process."""

    def emit(entry: Row | Failure) -> None:
        with open(rows, "a") as file:
            file.write(json.dumps(asdict(entry)) + "\n")

    measure_run(Run(model=model, compiled=how == "compiled", seconds=0), scale, emit)


if __name__ == "__main__":
    main()
