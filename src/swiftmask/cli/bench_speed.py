"""`swiftmask bench speed`: every kind of decode step of a model, timed beside the matmul peak."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from swiftmask.cli import measure
from swiftmask.cli.loading import device_text
from swiftmask.cli.progress import counting, note

if TYPE_CHECKING:
    from swiftmask.evaluate.speed import SpeedReport, StepKind
    from swiftmask.pipeline import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSpeed:
    """Time a full step and every accelerated one beside the machine's matmul peak, all in the same run.

    Attributes:
        model: a released size with --random-weights (maskgit-256, maskgit-512, mar-b, mar-l, mar-h,
            meissonic-512, meissonic-1024, lumina-dimoo), or any model `load` takes.
        random_weights: build the released size with random weights: speed does not depend on them.
        layers: blocks of a random lumina-dimoo; all 32 take 16 GB in bfloat16.
        shortcut: of a loaded model ("auto" is its own if it has one, "none" is none).
        marval: MARVAL student of a loaded MAR, likewise.
        dtype: of weights and features.
        matmul_precision: of float32 matmuls on a GPU: "high" computes them in TF32.
        device: where to run: cpu, cuda, mps, or auto (cuda where there is a GPU, else cpu).
        compile: compile the repeated blocks: a mode of torch.compile, or no name for its default.
        batch_size: images per step.
        steps: decode steps of the whole decode; default the model's own.
        full_steps: of those, how many run the backbone beside a shortcut; default the shortcut's own.
        repeats: timed rounds, after two that do not count.
        matmul_sizes: sides of the square matmuls; the fastest is the peak.
        out: also write the JSON to this file.
        json: print JSON instead of a table.
    """

    out_is_file: ClassVar[bool] = True

    model: Annotated[str, tyro.conf.Positional]
    random_weights: bool = False
    layers: int | None = None
    shortcut: str = "auto"
    marval: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    matmul_precision: Literal["highest", "high"] = "highest"
    device: str = "auto"
    compile: str | None = None
    batch_size: int = 1
    steps: int | None = None
    full_steps: int | None = None
    repeats: int = 10
    matmul_sizes: tuple[int, ...] = (2048, 4096)
    out: Path | None = None
    json: bool = False

    def run(self) -> int:
        """Measure and print."""
        from swiftmask.core.writing import write_text
        from swiftmask.evaluate.speed import num_rounds

        self._check()
        kinds = self.kinds()
        note(f"{self.model} on {device_text(kinds[0].model.device)} in {self.dtype}")
        with counting("timing", num_rounds(self.repeats), unit="rounds") as advance:
            report = self._measure(kinds, lambda: advance(1, "rounds"))
        if self.out is not None:
            write_text(self.out, _as_json(report))
        if self.json:
            measure.print_json(asdict(report))
        else:
            _print_speed(report)
        return 0

    def kinds(self) -> "list[StepKind]":
        """The kinds of step that the model has, the full one first."""
        base = self._base()
        shortcut = self._with_shortcut(base)
        student = self._with_student(base)
        accelerated = {"shortcut": shortcut, "ml-cache": _with_ml_cache(base)}
        found = [step_kind("full", base)]
        found += [step_kind(name, fast) for name, fast in accelerated.items() if fast is not None]
        return found if student is None else [*found, step_kind("marval", student)]

    def _check(self) -> None:
        if not self.matmul_sizes:
            raise ValueError("--matmul-sizes is empty: name at least one")
        if self.steps is not None and self.steps < 2:
            raise ValueError(f"--steps must be at least 2, got {self.steps}")
        if self.layers is not None and not self.random_weights:
            raise ValueError("--layers is for --random-weights: a loaded model has its own")

    def _measure(self, kinds: "list[StepKind]", on_round: Callable[[], None]) -> "SpeedReport":
        import torch

        from swiftmask.evaluate.speed import SpeedReport, measure_steps
        from swiftmask.recipes.provenance import commit, machine

        torch.set_float32_matmul_precision(self.matmul_precision)
        peak, costs = measure_steps(
            kinds,
            dtype=getattr(torch, self.dtype),
            batch=self.batch_size,
            repeats=self.repeats,
            matmul_sizes=self.matmul_sizes,
            on_round=on_round,
        )
        layers = "" if self.layers is None else f", {self.layers} layers"
        return SpeedReport(
            model=self.model + (f" (random weights{layers})" if self.random_weights else ""),
            kinds=costs,
            matmul_peak_flops=peak,
            steps=len(kinds[0].schedule),
            batch=self.batch_size,
            repeats=self.repeats,
            dtype=self.dtype,
            matmul_precision=self.matmul_precision,
            compile_mode=self.compile,
            device=str(kinds[0].model.device),
            threads=torch.get_num_threads(),
            machine=machine(),
            torch=torch.__version__,
            commit=commit(),
            command=measure.command_of("bench speed", self),
        )

    def _base(self) -> "Pipeline":
        import torch

        from swiftmask.api import device_named, load
        from swiftmask.cli.random_models import random_pipeline

        if self.random_weights:
            dtype = getattr(torch, self.dtype)
            base = random_pipeline(
                self.model, device=device_named(self.device), dtype=dtype, layers=self.layers
            )
        else:
            base = load(self.model, dtype=self.dtype, device=self.device)
        base = base.compiled(self.compile or False)
        return base if self.steps is None else replace(base, steps=self.steps)

    def _with_shortcut(self, base: "Pipeline") -> "Pipeline | None":
        from swiftmask.api import accelerate
        from swiftmask.cli.random_models import random_shortcut

        if self.random_weights:
            found = random_shortcut(base)
            if found is None:
                return None
            network, own_full_steps = found
            full_steps = min(own_full_steps, base.steps) if self.full_steps is None else self.full_steps
        else:
            network, full_steps = measure.own_or_none(self.model, self.shortcut, "shortcut"), self.full_steps
            if network == "none":
                return None
        if full_steps is not None:
            measure.check_budget(base.steps, full_steps)
        return accelerate(base, shortcut=network, full_steps=full_steps)

    def _with_student(self, base: "Pipeline") -> "Pipeline | None":
        from swiftmask.api import accelerate
        from swiftmask.cli.random_models import untrained_student

        if self.random_weights:
            student = untrained_student(base)
            return None if student is None else accelerate(base, marval=student)
        source = measure.own_or_none(self.model, self.marval, "marval")
        return None if source == "none" else accelerate(base, marval=source)


def step_kind(name: str, pipeline: "Pipeline") -> "StepKind":
    """The middle step of a pipeline's decode, with its operations counted."""
    from swiftmask.evaluate.speed import StepKind, middle

    schedule = pipeline.schedule()
    index = middle(schedule)
    accelerated = pipeline.features_fn is not None
    steps = [replace(schedule[index - 1], full=True), replace(schedule[index], full=not accelerated)]
    return StepKind(
        name=name,
        model=pipeline.model,
        features_fn=pipeline.step_features,
        schedule=schedule,
        flops=pipeline.flops(steps) - pipeline.flops(steps[:1]),
        accelerated=accelerated,
    )


def _with_ml_cache(base: "Pipeline") -> "Pipeline | None":
    from swiftmask.api import accelerate
    from swiftmask.methods.caching import ml_cache_full_steps

    if not hasattr(base.model, "features_and_cache"):
        return None
    return accelerate(base, caching="ml-cache", full_steps=ml_cache_full_steps(base.steps))


def _as_json(report: "SpeedReport") -> str:
    import json

    return json.dumps(asdict(report), indent=2) + "\n"


def _print_speed(report: "SpeedReport") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{report.model}, {report.dtype}, batch {report.batch}, {report.device}")
    for column in (
        "step",
        "ms (IQR)",
        "speed-up",
        "GFLOP",
        "of peak",
        "peak MB",
        "full steps",
        "decode share",
    ):
        table.add_column(column)
    for cost in report.kinds:
        table.add_row(
            cost.kind,
            f"{cost.ms:.1f} ({cost.iqr_ms:.1f})",
            f"{cost.speedup:.1f}",
            f"{cost.flops / 1e9:.1f}",
            f"{100 * cost.peak_share:.0f} %",
            f"{cost.peak_memory_bytes / 1e6:.0f}",
            f"{cost.full_steps} of {report.steps}",
            f"{cost.decode_share:.2f}",
        )
    console = Console()
    console.print(table)
    console.print(f"matmul peak {report.matmul_peak_flops / 1e9:.0f} GFLOP/s; {report.machine}", style="dim")
    console.print(report.command, style="dim")
