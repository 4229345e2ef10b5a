"""`swiftmask bench speed`: one full step and one shortcut step, timed beside the machine's matmul peak."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from swiftmask.cli import measure

if TYPE_CHECKING:
    from swiftmask.evaluate.speed import SpeedReport, SpeedSetup, Task
    from swiftmask.pipeline import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSpeed:
    """Time one full and one shortcut step beside the machine's matmul peak, all in the same run.

    Attributes:
        model: a released size (maskgit-256, maskgit-512) with --random-weights, or any model `load` takes.
        random_weights: build the released size with random weights: speed does not depend on them.
        shortcut: shortcut of a loaded model ("auto" is its own).
        dtype: of weights and features.
        device: where to run ("cpu", "cuda").
        batch: pictures per step.
        steps: decode steps of the whole decode that `share` is about.
        full_steps: how many of them run the backbone.
        repeats: timed rounds, after two that do not count.
        whole: time whole decodes for `share`, instead of adding up measured steps.
        matmul_sizes: sides of the square matmuls; the fastest is the peak.
        out: also write the JSON to this file.
        json: print JSON instead of a table.
    """

    model: Annotated[str, tyro.conf.Positional]
    random_weights: bool = False
    shortcut: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    batch: int = 1
    steps: int = 32
    full_steps: int = 12
    repeats: int = 10
    whole: bool = False
    matmul_sizes: tuple[int, ...] = (2048, 4096)
    out: Path | None = None
    json: bool = False

    def run(self) -> int:
        """Measure and print."""
        from swiftmask.evaluate.speed import measure_speed
        from swiftmask.evaluate.summary import write_text
        from swiftmask.recipes.provenance import machine

        measure.check_budget(self.steps, self.full_steps)
        if self.batch < 1 or self.repeats < 1 or self.steps < 2 or not self.matmul_sizes:
            raise ValueError(
                "--batch and --repeats must be at least 1, --steps at least 2, --matmul-sizes given"
            )
        setup = self._setup()
        with measure.progress("timing", setup.num_rounds) as advance:
            report = measure_speed(
                setup,
                model_name=self.model + (" (random weights)" if self.random_weights else ""),
                machine=machine(),
                command=self.command(),
                on_round=lambda: advance(1, "rounds"),
            )
        if self.out is not None:
            write_text(self.out, _as_json(report))
        if self.json:
            measure.print_json(asdict(report))
        else:
            _print_speed(report)
        return 0

    def command(self) -> str:
        """What measures this again."""
        words: list[object] = ["bench", "speed", self.model]
        words += ["--random-weights"] if self.random_weights else ["--shortcut", self.shortcut]
        words += ["--dtype", self.dtype, "--device", self.device, "--batch", self.batch]
        words += ["--steps", self.steps, "--full-steps", self.full_steps, "--repeats", self.repeats]
        return measure.command_line(*words, *(["--whole"] if self.whole else []))

    def _setup(self) -> "SpeedSetup":
        import torch

        from swiftmask.evaluate.speed import SpeedSetup

        fast = self._pipeline()
        assert fast.features_fn is not None
        schedule = fast.schedule(self.steps)
        index = max(1, self.steps // 2)
        before, step = replace(schedule[index - 1], full=True), schedule[index]
        vanilla = replace(fast, features_fn=None, full_steps=None, _flops={})
        both = fast.flops([before, replace(step, full=False)])
        return SpeedSetup(
            model=fast.model,
            accelerated=fast.features_fn,
            schedule=schedule,
            full_flops=self.batch * vanilla.flops([replace(step, full=True)]),
            fast_flops=self.batch * (both - vanilla.flops([before])),
            dtype=getattr(torch, self.dtype),
            batch=self.batch,
            repeats=self.repeats,
            decodes=(self._decode_with(fast), self._decode_with(vanilla)) if self.whole else None,
            matmul_sizes=self.matmul_sizes,
        )

    def _pipeline(self) -> "Pipeline":
        from swiftmask.api import accelerate, load

        if self.random_weights:
            return self._random_pipeline()
        shortcut = measure.shortcut_of(self.model, self.shortcut)
        base = load(self.model, dtype=self.dtype, device=self.device)
        return accelerate(base, shortcut=shortcut, full_steps=self.full_steps)

    def _random_pipeline(self) -> "Pipeline":
        import torch

        from swiftmask.api import accelerate
        from swiftmask.methods.shortcut import RELEASED_SHORTCUT, Shortcut
        from swiftmask.models.maskgit import MaskGIT
        from swiftmask.models.maskgit.codec import VQGAN
        from swiftmask.models.maskgit.weights import RELEASED_VQGAN, random_transformer
        from swiftmask.pipeline import Pipeline

        transformer = random_transformer(self.model).to(self.device, getattr(torch, self.dtype))
        with torch.device("meta"):
            codec = VQGAN(RELEASED_VQGAN)  # no step touches the codec, so it takes no memory
        model: Any = MaskGIT(transformer, codec).requires_grad_(False)  # the protocol's Condition is wider
        base = Pipeline(model, name=self.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            shortcut = Shortcut(RELEASED_SHORTCUT).requires_grad_(False)
        return accelerate(base, shortcut=shortcut, full_steps=self.full_steps)

    def _decode_with(self, pipeline: "Pipeline") -> "Task":
        from swiftmask.core.rng import SeededNoise

        model, schedule = pipeline.model, pipeline.schedule(self.steps)

        def decode_once() -> object:
            noise = SeededNoise(range(self.batch), model.spec.num_tokens, model.device)
            return pipeline._decode(
                model.encode([0] * self.batch), schedule, noise, model.blank(self.batch), None
            )

        return decode_once


def _as_json(report: "SpeedReport") -> str:
    import json

    return json.dumps(asdict(report), indent=2) + "\n"


def _print_speed(report: "SpeedReport") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{report.model}, {report.dtype}, batch {report.batch}, {report.device}", show_header=False
    )
    lines = (
        ("full step", f"{report.full_step_ms:.1f} ms (IQR {report.full_step_iqr_ms:.1f})"),
        ("shortcut step", f"{report.shortcut_step_ms:.2f} ms (IQR {report.shortcut_step_iqr_ms:.2f})"),
        ("full / shortcut", f"{report.ratio:.1f}"),
        ("operations of a full step", f"{report.full_step_flops / 1e9:.1f} GFLOP"),
        ("matmul peak", f"{report.matmul_peak_flops / 1e9:.0f} GFLOP/s"),
        ("full step, share of that peak", f"{100 * report.peak_share:.0f} %"),
        (
            f"{report.steps} steps with {report.full_steps} full, of all full",
            f"{report.share:.2f} ({report.share_from})",
        ),
        ("peak memory", f"{report.peak_memory_bytes / 1e6:.0f} MB"),
        ("machine", report.machine),
        ("command", report.command),
    )
    for line in lines:
        table.add_row(*line)
    Console().print(table)
