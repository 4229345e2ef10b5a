"""From settings to rows of a study: pipelines, their names, and what they cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftmask.cli import measure
from swiftmask.core.protocol import SamplingOptions
from swiftmask.evaluate.presets import Settings
from swiftmask.evaluate.scorers import Generated
from swiftmask.evaluate.study import Row
from swiftmask.evaluate.summary import VANILLA
from swiftmask.presets import apply_settings
from swiftmask.registry import weights_name

if TYPE_CHECKING:
    from swiftmask.core.types import Record, Schedule, Step
    from swiftmask.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Rows:
    """Makes rows of one base model; weights of accelerators are read once."""

    base: "Pipeline"
    _costs: "StepCosts" = field(default_factory=lambda: StepCosts())
    _built: dict[Settings, "Pipeline"] = field(default_factory=dict)

    def row(self, settings: Settings, *, placement: str = "", reference: str | None = None) -> Row:
        """Settings as a row.

        Its name says series and steps, then, where they are chosen, denoising steps ("x") and full steps
        (":").

        Args:
            placement: of full steps that the settings list.

        Errors: ValueError for settings that the model cannot follow.
        """
        pipeline = self.pipeline(settings)
        schedule = pipeline.schedule()
        series, num_full = series_of(settings), sum(step.full for step in schedule)
        name = f"{series}-{pipeline.steps}{_denoising(pipeline)}"
        name += "" if pipeline.features_fn is None else f":{num_full}"
        return Row(
            name=f"{name} {placement}".strip(),
            series=series,
            steps=pipeline.steps,
            full_steps=num_full,
            calls=pipeline.calls(schedule),
            flops=pipeline.flops(schedule),
            fingerprint=measure.fingerprint(pipeline, schedule),
            generate=partial(generated, pipeline),
            device=pipeline.model.device,
            reference=reference,
            settings=settings,
            placement=placement,
        )

    def pipeline(self, settings: Settings) -> "Pipeline":
        """A pipeline with these settings that already knows what it costs."""
        pipeline = self._pipeline(settings)
        schedule = pipeline.schedule()
        return replace(pipeline, _flops={tuple(schedule): self._costs.total(pipeline, schedule)})

    def flops(self, settings: Settings) -> int:
        """Operations of the token decode of one image."""
        pipeline = self._pipeline(settings)
        return self._costs.total(pipeline, pipeline.schedule())

    def check(self, settings: Settings) -> None:
        """Errors: ValueError for settings that the model cannot follow; counts nothing, which takes long."""
        self._pipeline(settings).schedule()

    def _pipeline(self, settings: Settings) -> "Pipeline":
        names = ("shortcut", "caching", "marval", "speed_rl")
        accelerators = Settings(**{name: getattr(settings, name) for name in names})
        if accelerators not in self._built:
            self._built[accelerators] = apply_settings(self.base, accelerators)
        built = self._built[accelerators]
        chosen = {} if settings.full_steps is None else {"full_steps": settings.full_steps}
        if chosen and built.features_fn is None:
            raise ValueError("full steps go with a shortcut or caching: without one every step is full")
        if isinstance(settings.full_steps, int):
            measure.check_budget(settings.steps or built.steps, settings.full_steps)
        return replace(
            built,
            steps=settings.steps or built.steps,
            full_steps_by_default=built.full_steps_by_default and not chosen,
            sampling=settings.sampling.over(built.sampling),
            _flops={},
            **chosen,
        )


def series_of(settings: Settings) -> str:
    """What rows that differ in step counts alone have in common: changed sampling, weights, accelerator."""
    sampling = settings.sampling
    annealed = "disa" if isinstance(sampling.denoising_steps, tuple) else ""
    fixed = sampling.sampler or ("denoising" if sampling.denoising_steps else "")
    changed = (
        ("guidance", None if sampling.guidance == 1.0 else sampling.guidance),
        ("temperature", sampling.temperature),
        ("choice", sampling.choice_temperature),
        ("power", sampling.schedule_power),
    )
    parts = (
        "unguided" if sampling.guidance == 1.0 else "",
        *(f"{name}-{value:g}" for name, value in changed if value is not None),
        annealed or fixed,
        *(weights_name(Path(source)) for source in (settings.speed_rl, settings.marval) if source),
        settings.caching or ("" if settings.shortcut is None else "shortcut"),
    )
    return "+".join(part for part in parts if part) or VANILLA


def own_sampling(base: "Pipeline") -> SamplingOptions:
    """What the model does when nothing is asked."""
    return base.sampling.over(getattr(base.model, "sampling", SamplingOptions()))


def _denoising(pipeline: "Pipeline") -> str:
    chosen = pipeline.sampling.denoising_steps
    if chosen is None:
        return ""
    return f"x{chosen}" if isinstance(chosen, int) else f"x{chosen[0]}-{chosen[1]}"


def generated(
    pipeline: "Pipeline",
    asked: Sequence[Any],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    on_step: "Callable[[Record], None] | None" = None,
) -> Generated:
    """One image per class or prompt, whichever the model takes, and image seed."""
    labels, prompts = (asked, None) if pipeline.model.spec.draws == "class" else (None, asked)
    result = pipeline.generate(
        labels, prompts=prompts, seeds=seeds, steps=steps, output_type="pt", on_step=on_step
    )
    assert not isinstance(result.images, list)
    return Generated(result.images, result.trajectory.tokens_BL, result.cost.seconds)


StepKey = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Operations of single steps, so that a placement of full steps is a sum and not another count.

    What a step costs follows from whether it is full and guided and how many tokens are masked and decided;
    an accelerated one also reads those of the step before. Guidance and temperature are only numbers.
    """

    _known: dict[StepKey, int] = field(default_factory=dict)

    def total(self, pipeline: "Pipeline", schedule: "Schedule") -> int:
        """Operations of a decode, as `Pipeline.flops`."""
        if any(step.denoising is not None for step in schedule):
            return pipeline.flops(schedule)
        keys = _keys(pipeline, schedule)
        if any(key not in self._known for key in keys):
            self._count(pipeline, [replace(step, full=True) for step in schedule])
        if any(key not in self._known for key in keys):
            self._count(pipeline, [replace(step, full=step.index == 0) for step in schedule])
        return sum(self._known[key] for key in keys)

    def _count(self, pipeline: "Pipeline", schedule: "list[Step]") -> None:
        keys = _keys(pipeline, schedule)
        if any(key not in self._known for key in keys):
            self._known.update(zip(keys, pipeline.step_flops(schedule), strict=True))


def _keys(pipeline: "Pipeline", schedule: "Schedule") -> list[StepKey]:
    """What the cost of every step follows from."""
    branches = any(step.guidance != 1.0 for step in schedule)
    before = [0, *(step.num_decided for step in schedule)]
    features_fn = pipeline.features_fn
    accelerator = () if features_fn is None else (features_fn.name, features_fn.settings)
    return [
        (
            type(pipeline.model).__name__,
            "" if step.full else (accelerator, num_before),
            branches,
            step.num_masked_before,
            step.num_decided,
        )
        for step, num_before in zip(schedule, before, strict=False)
    ]
