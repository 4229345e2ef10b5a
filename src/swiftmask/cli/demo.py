"""`swiftmask demo`: the full model and the accelerated one on the same seeds, with a report."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from swiftmask.cli import measure
from swiftmask.cli.asked import Asked
from swiftmask.cli.checks import option

if TYPE_CHECKING:
    from swiftmask.cli.rows import Rows
    from swiftmask.evaluate.presets import Settings
    from swiftmask.pipeline import Pipeline

_BASELINE_DENOISING = 10
"""DDIM steps of a diffusion head that spares as many as it can without being trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Generate with the full model, the accelerated one, and the full one at equal cost: same seeds.

    The accelerator is the model's own (its shortcut, its MARVAL student or its Speed-RL weights) unless one
    is named; a model without one reuses features. Writes the files of `bench` and OUT/grid.png. Finished
    parts are used again. `bench` measures more rows and more images.

    Attributes:
        out: folder of the report.
        model: bundled name, model folder or Hugging Face repo id.
        shortcut: accelerate with this shortcut.
        caching: accelerate without training.
        marval: accelerate with this MARVAL student.
        speed_rl: accelerate with these Speed-RL weights.
        steps: decode steps (default: the model's own).
        full_steps: how many of them still run the backbone with a shortcut or caching; how many there are
            with Speed-RL (default: three eighths of the steps).
        images: images per row, for scoring. The default takes a minute or two on two cores; it shows large
            differences only.
        shown: images side by side.
        device: where to run: cpu, cuda, mps, or auto (cuda where there is a GPU, else cpu).
        overwrite: replace the report of another model, of other settings or of bench.
        json: print JSON instead of a table.
    """

    out: Path = Path("demo")
    model: str = "maskgit-scenes"
    asked: Annotated[Asked, tyro.conf.OmitArgPrefixes] = Asked()
    shortcut: str | None = None
    caching: measure.Caching | None = None
    marval: str | None = None
    speed_rl: str | None = None
    steps: int | None = None
    full_steps: int | None = None
    images: int = 60
    shown: int = 6
    device: str = "auto"
    overwrite: bool = False
    json: bool = False

    def run(self) -> int:
        """Measure, generate, write, print."""
        from swiftmask.api import load
        from swiftmask.cli.rows import Rows
        from swiftmask.cli.scoring import study_of
        from swiftmask.cli.shown import measure_and_publish
        from swiftmask.evaluate.study import Sample
        from swiftmask.registry import bundled_names

        if not 1 <= self.shown <= self.images:
            raise ValueError(f"--shown must be between 1 and --images ({self.images}), got {self.shown}")
        if self.model == Demo().model and self.model not in bundled_names("model"):
            raise ValueError(
                f"the bundled weights of {self.model} are missing: reinstall the package, train them "
                f"(swiftmask train {self.model}), or pass --model FOLDER"
            )
        self.asked.check()
        base = load(self.model, device=self.device)
        command = measure.command_of("demo", self)
        if not self.overwrite:
            measure.refuse_another_report(self.out / "report.json", base.name, command)
        rows_of = Rows(base)
        full, fast = self._compared(base)
        compared = fast.marval is None and fast.speed_rl is None
        sample = Sample(num_images=self.images, num_seeds=1, batch_size=min(96, self.images))
        study = study_of(base, self.asked, sample, self.out / "parts", diverse=False, compared=compared)
        rows = [rows_of.row(full)]
        rows += [rows_of.row(fast, reference=rows[0].name if compared else None)]
        rows += [rows_of.row(other) for other in _beside(full, fast, rows_of)]
        measure_and_publish(self, command, rows_of, rows, study, sample)
        return 0

    def _compared(self, base: "Pipeline") -> "tuple[Settings, Settings]":
        """The full model and the accelerated one.

        Errors: ValueError for more full steps than there are steps, or if several accelerators are named.
        """
        from swiftmask.evaluate.presets import Settings

        steps = base.steps if self.steps is None else self.steps
        full_steps = max(1, 3 * steps // 8) if self.full_steps is None else self.full_steps
        measure.check_budget(steps, full_steps)
        full, (method, source) = Settings(steps=steps), self._accelerator()
        match method:
            case "speed_rl":
                return full, replace(full, speed_rl=source, steps=full_steps)
            case "marval":
                return full, replace(full, marval=source)
            case _:
                return full, replace(full, full_steps=full_steps, **{method: source})

    def _accelerator(self) -> tuple[str, str]:
        """The method, and where its weights are: what is named, else the model's own, else reuse."""
        named = {method: getattr(self, method) for method in (*measure.METHODS, "caching")}
        given = [(method, source) for method, source in named.items() if source is not None]
        if len(given) > 1:
            options = " or ".join(option(method) for method, _ in given)
            raise ValueError(f"the demo shows one accelerator: {options}, not both")
        own = [(method, "auto") for method in measure.METHODS if measure.has_own(self.model, method)]
        method, source = (*given, *own, ("caching", "reuse"))[0]
        return method, source if method == "caching" else measure.own(self.model, source, method)


def _beside(full: "Settings", fast: "Settings", rows_of: "Rows") -> "list[Settings]":
    """The full model with as many steps (or, beside a student of its head, fewer denoising ones) as the
    accelerated one costs, and unguided.
    """
    from swiftmask.core.protocol import SamplingOptions

    few = SamplingOptions(sampler="ddim", denoising_steps=_BASELINE_DENOISING)
    baseline = full if fast.marval is None else replace(full, sampling=few)
    equal = _at_cost_of(rows_of.flops(fast), baseline, rows_of)
    others = [] if equal == full else [equal]
    if measure.is_guided(rows_of.base):
        others.append(replace(full, sampling=SamplingOptions(guidance=1.0)))
    return others


def _at_cost_of(wanted: int, baseline: "Settings", rows_of: "Rows") -> "Settings":
    """The baseline with as many steps, at most its own, as come nearest to so many operations."""
    assert baseline.steps is not None

    def flops(steps: int) -> int:
        return rows_of.flops(replace(baseline, steps=steps))

    enough = 1 + bisect_left(range(1, baseline.steps), wanted, key=flops)
    nearest = min({max(1, enough - 1), enough}, key=lambda steps: abs(flops(steps) - wanted))
    return replace(baseline, steps=nearest)
