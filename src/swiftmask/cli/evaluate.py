"""`swiftmask evaluate`: quality and cost of one way to draw."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from swiftmask.cli import measure
from swiftmask.cli.loading import say_where

if TYPE_CHECKING:
    from swiftmask.evaluate.quality import Row
    from swiftmask.pipeline import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Measure the quality and the cost of one model, one step count, one accelerator.

    Attributes:
        model: bundled name, model folder or Hugging Face repo id.
        steps: decode steps.
        shortcut: accelerate with this shortcut ("auto" is the model's own).
        caching: accelerate with a training-free baseline instead.
        marval: generate tokens in one head call each, by this MARVAL student ("auto" is the model's own);
            goes with a shortcut or a baseline.
        speed_rl: generate with these weights, which Speed-RL tuned for few steps ("auto" is the model's own);
            goes with a shortcut or a baseline.
        full_steps: how many steps still run the backbone when accelerated.
        denoising_steps: head calls per token of a diffusion head; two numbers anneal from the first to the
            second (DiSA).
        sampler: of a diffusion head.
        unguided: without guidance, which halves the cost.
        temperature: of the tokens, instead of the model's own or that of tuned weights.
        schedule_power: above 1, more tokens are decided in the first steps and fewer in the last.
        pictures: images for each evaluation seed.
        seeds: evaluation seeds.
        batch: images at a time.
        device: where to run: cpu, cuda, mps, or auto (cuda where there is a GPU, else cpu).
        dtype: of the weights.
        out: folder for the report (JSON); finished parts are kept there and used again.
        overwrite: replace the report of another model.
        json: print JSON instead of a table.
    """

    model: Annotated[str, tyro.conf.Positional]
    steps: int | None = None
    shortcut: str | None = None
    caching: measure.Caching | None = None
    marval: str | None = None
    speed_rl: str | None = None
    full_steps: int | None = None
    denoising_steps: tuple[int, ...] = ()
    sampler: Literal["ancestral", "ddim"] | None = None
    unguided: bool = False
    temperature: float | None = None
    schedule_power: float | None = None
    pictures: int = 700
    seeds: int = 3
    batch: int = 100
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    out: Path = Path("report")
    overwrite: bool = False
    json: bool = False

    def run(self) -> int:
        """Measure, print, write `OUT/evaluate-ROW.json`."""
        from swiftmask.api import load
        from swiftmask.evaluate.quality import Sample
        from swiftmask.evaluate.summary import write_report

        if self.full_steps is not None and not self._accelerated:
            raise ValueError("--full-steps needs an accelerator: add --shortcut auto or --caching reuse")
        sample = Sample(num_pictures=self.pictures, num_seeds=self.seeds, batch_size=self.batch)
        base = load(self.model, dtype=self.dtype, device=self.device)
        measure.require_scenes(base)
        chosen = replace(self, steps=base.steps) if self.steps is None else self
        row = chosen.row(base)
        store = measure.store_of(base, self.out / f"{base.name.replace('/', '--')}-evaluate.partial")
        path = self.out / f"evaluate-{row.name.replace(':', '-')}.json"
        measure.refuse_another_model(path, base.name, overwrite=self.overwrite)
        say_where(base)
        report = measure.study([row], sample, store, model=base.name, command=chosen.command())
        write_report(report, path)
        if self.json:
            measure.print_json(asdict(report))
        else:
            measure.print_table(report)
        return 0

    def row(self, base: "Pipeline", *, reference: str | None = None) -> "Row":
        """This way to draw with the loaded model, as a row of a study.

        Errors: ValueError for more full steps than there are steps.
        """
        steps = base.steps if self.steps is None else self.steps
        if self.full_steps is not None:
            measure.check_budget(steps, self.full_steps)
        return measure.row_of(
            self.pipeline(base),
            steps,
            series=self.series(),
            command=self.command(),
            reference=reference,
        )

    def pipeline(self, base: "Pipeline") -> "Pipeline":
        """The loaded model with the chosen sampler, weights, student and accelerator."""
        from swiftmask.api import accelerate
        from swiftmask.core.protocol import SamplingOptions

        options = SamplingOptions(
            denoising_steps=measure.denoising_steps(self.denoising_steps),
            sampler=self.sampler,
            guidance=1.0 if self.unguided else None,
            temperature=self.temperature,
            schedule_power=self.schedule_power,
        )
        pipeline = replace(base, sampling=options.over(base.sampling), _flops={})
        if self.speed_rl is not None:
            pipeline = accelerate(pipeline, speed_rl=measure.speed_rl_of(self.model, self.speed_rl))
        if self.marval is not None:
            pipeline = accelerate(pipeline, marval=measure.marval_of(self.model, self.marval))
        if not self._accelerated:
            return pipeline
        shortcut = None if self.shortcut is None else measure.shortcut_of(self.model, self.shortcut)
        return accelerate(pipeline, shortcut=shortcut, caching=self.caching, full_steps=self.full_steps)

    def series(self) -> str:
        """What rows that differ in step counts alone have in common."""
        annealed = "disa" if len(self.denoising_steps) == 2 else ""
        fixed = self.sampler or ("denoising" if self.denoising_steps else "")
        weights = [
            measure.student_name(where(self.model, source))
            for where, source in ((measure.speed_rl_of, self.speed_rl), (measure.marval_of, self.marval))
            if source is not None
        ]
        accelerator = self.caching or ("" if self.shortcut is None else "shortcut")
        drawn_at = [
            f"{name}-{value:g}"
            for name, value in (("temperature", self.temperature), ("power", self.schedule_power))
            if value is not None
        ]
        parts = ["unguided" if self.unguided else "", *drawn_at, annealed or fixed, *weights, accelerator]
        return "+".join(part for part in parts if part) or "vanilla"

    @property
    def _accelerated(self) -> bool:
        return self.shortcut is not None or self.caching is not None

    def command(self) -> str:
        """What measures this row again."""
        words: list[object] = ["evaluate", self.model, "--steps", self.steps]
        flags = (("--shortcut", self.shortcut), ("--caching", self.caching), ("--marval", self.marval))
        for flag, value in (*flags, ("--speed-rl", self.speed_rl), ("--sampler", self.sampler)):
            words += [] if value is None else [flag, value]
        words += ["--denoising-steps", *self.denoising_steps] if self.denoising_steps else []
        words += [] if self.full_steps is None else ["--full-steps", self.full_steps]
        words += ["--unguided"] if self.unguided else []
        words += [] if self.temperature is None else ["--temperature", f"{self.temperature:g}"]
        words += [] if self.schedule_power is None else ["--schedule-power", f"{self.schedule_power:g}"]
        words += ["--pictures", self.pictures, "--seeds", self.seeds]
        words += ["--dtype", self.dtype, "--device", self.device]
        return measure.command_line(*words)
