"""`swiftmask evaluate`: quality and cost of one way to draw."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from swiftmask.cli import measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Measure the quality and the cost of one model, one step count, one accelerator.

    Attributes:
        model: bundled name, model folder or Hugging Face repo id.
        steps: decode steps.
        shortcut: accelerate with this shortcut ("auto" is the model's own).
        caching: accelerate with a training-free rival instead.
        full_steps: how many steps still run the backbone when accelerated.
        pictures: pictures for each evaluation seed.
        seeds: evaluation seeds.
        batch: pictures at a time.
        device: where to run ("cpu", "cuda").
        dtype: of the weights.
        out: folder for the report (JSON); finished parts are kept there and used again.
        json: print JSON instead of a table.
    """

    model: Annotated[str, tyro.conf.Positional]
    steps: int = 16
    shortcut: str | None = None
    caching: Literal["reuse", "extrapolation-1", "extrapolation-2"] | None = None
    full_steps: int | None = None
    pictures: int = 700
    seeds: int = 3
    batch: int = 100
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    out: Path = Path("report")
    json: bool = False

    def run(self) -> int:
        """Measure, print, write `OUT/evaluate-ROW.json`."""
        from swiftmask.api import accelerate, load
        from swiftmask.evaluate.quality import Sample
        from swiftmask.evaluate.summary import write_report

        accelerated = self.shortcut is not None or self.caching is not None
        if self.full_steps is not None and not accelerated:
            raise ValueError("--full-steps needs an accelerator: add --shortcut auto or --caching reuse")
        if self.full_steps is not None:
            measure.check_budget(self.steps, self.full_steps)
        sample = Sample(num_pictures=self.pictures, num_seeds=self.seeds, batch_size=self.batch)
        base = load(self.model, dtype=self.dtype, device=self.device)
        measure.require_scenes(base)
        pipeline, series = base, "vanilla"
        if accelerated:
            shortcut = None if self.shortcut is None else measure.shortcut_of(self.model, self.shortcut)
            pipeline = accelerate(base, shortcut=shortcut, caching=self.caching, full_steps=self.full_steps)
            series = "shortcut" if self.caching is None else self.caching
        row = measure.row_of(pipeline, self.steps, series=series, command=self.command())
        store = measure.store_of(base, self.out / f"{base.name.replace('/', '--')}-evaluate.partial")
        report = measure.study([row], sample, store, model=base.name, command=self.command())
        write_report(report, self.out / f"evaluate-{row.name.replace(':', '-')}.json")
        if self.json:
            measure.print_json(asdict(report))
        else:
            measure.print_table(report)
        return 0

    def command(self) -> str:
        """What measures this row again."""
        words: list[object] = ["evaluate", self.model, "--steps", self.steps]
        for flag, value in (("--shortcut", self.shortcut), ("--caching", self.caching)):
            words += [] if value is None else [flag, value]
        words += [] if self.full_steps is None else ["--full-steps", self.full_steps]
        words += ["--pictures", self.pictures, "--seeds", self.seeds]
        words += ["--dtype", self.dtype, "--device", self.device]
        return measure.command_line(*words)
