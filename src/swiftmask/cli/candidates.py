"""From a loaded model to the candidates of `swiftmask tune`: settings, what they cost, and rows that draw."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from swiftmask.cli import measure
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.schedule import uniform_full_steps
from swiftmask.core.settings import first_line, parse_json_list, read_text
from swiftmask.core.writing import write_text
from swiftmask.evaluate.presets import Settings
from swiftmask.evaluate.subjects import Subjects, picture_seeds
from swiftmask.evaluate.tuning.feature_drift import (
    Distance,
    Recording,
    drift,
    feature_distance,
    record_decode,
    token_distance,
)
from swiftmask.evaluate.tuning.halving import Bounds, Candidate
from swiftmask.evaluate.tuning.placement import front_loaded_full_steps, optimised_full_steps
from swiftmask.presets import apply_settings

if TYPE_CHECKING:
    from torch import Tensor

    from swiftmask.core.types import Schedule, Step
    from swiftmask.pipeline import Pipeline

Placement = Literal["uniform", "front-loaded", "feature-drift", "token-drift"]

DISTANCES: dict[Placement, Distance] = {"feature-drift": feature_distance, "token-drift": token_distance}
"""Placements that are optimised for a measured drift, and what is measured."""

DRIFT_SEED = 10_000
"""Evaluation seed of the pictures that drift is measured on; no study gets that far."""

_SHORT = {"guidance": "g", "temperature": "t", "choice_temperature": "c", "schedule_power": "p"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Makes candidates of one base model.

    Attributes:
        base: the loaded model, unaccelerated.
        subjects: what drift is measured on.
        folder: where measured drift is kept, so that a killed search does not measure it again.
        drift_pictures: how many images it is measured on.
        command: what is written down as making the candidates' rows.
    """

    base: "Pipeline"
    subjects: Subjects
    folder: Path
    drift_pictures: int
    command: str
    _costs: "StepCosts" = field(default_factory=lambda: StepCosts())
    _built: dict[Settings, "Pipeline"] = field(default_factory=dict)
    _recordings: dict[int, Recording] = field(default_factory=dict)

    def candidate(self, settings: Settings, placement: str = "") -> Candidate:
        """Settings, with the row that draws with them.

        Args:
            placement: of the full steps, where the settings hold it step by step.
        """
        pipeline = self.pipeline(settings)
        assert settings.steps is not None
        series = self._series(settings)
        row = measure.row_of(pipeline, settings.steps, series=series, command=self.command)
        chosen = [
            f"{letter}{value:g}"
            for option, letter in _SHORT.items()
            if (value := getattr(settings.sampling, option)) is not None
        ]
        name = " ".join(word for word in (row.name, placement, *chosen) if word)
        return Candidate(settings=settings, row=replace(row, name=name), placement=placement)

    def pipeline(self, settings: Settings) -> "Pipeline":
        """A pipeline with these settings that already knows what it costs."""
        pipeline = self._pipeline(settings)
        schedule = pipeline.schedule()
        return replace(pipeline, _flops={tuple(schedule): self._costs.total(pipeline, schedule)})

    def flops(self, settings: Settings) -> int:
        """Operations of the token decode of one picture."""
        pipeline = self._pipeline(settings)
        return self._costs.total(pipeline, pipeline.schedule())

    def placed(self, settings: Settings, num_full: int, placement: Placement) -> Settings:
        """The settings of an accelerator with so many full steps, placed.

        Errors: ValueError for an optimised placement of an accelerator that remembers too much, or for a
        drift of tokens that are no codes.
        """
        assert settings.steps is not None
        if placement == "uniform":
            return replace(settings, full_steps=num_full)
        if placement == "front-loaded":
            return replace(settings, full_steps=tuple(front_loaded_full_steps(settings.steps, num_full)))
        drift_SS = self.drift(settings, placement)
        return replace(settings, full_steps=tuple(optimised_full_steps(drift_SS, num_full)))

    def placements(self, settings: Settings) -> list[Placement]:
        """Those there are for an accelerator.

        The drift of a segment must depend on the full step that it starts with alone.
        """
        placements: list[Placement] = ["uniform", "front-loaded"]
        if settings.shortcut is not None or settings.caching == "reuse":
            placements.append("feature-drift")
            if self.base.model.spec.codebook_size is not None:
                placements.append("token-drift")
        return placements

    def other_placements(self, candidate: Candidate) -> Iterator[Candidate]:
        """The candidate with its full steps elsewhere, as many of them, where that makes a difference."""
        settings = candidate.settings
        if not isinstance(settings.full_steps, int):
            return
        assert settings.steps is not None
        seen = {tuple(uniform_full_steps(settings.steps, settings.full_steps))}
        for placement in self.placements(settings)[1:]:
            moved = self.placed(settings, settings.full_steps, placement)
            if moved.full_steps not in seen:
                assert isinstance(moved.full_steps, tuple)
                seen.add(moved.full_steps)
                yield self.candidate(moved, placement)

    def largest_fitting(self, settings: Settings, bounds: Bounds) -> int | None:
        """How many steps of an accelerated decode can be full within the bound on the cost; None if none."""
        assert settings.steps is not None
        counts = range(settings.steps - 1, 0, -1)
        return next((n for n in counts if bounds.affords(self.flops(replace(settings, full_steps=n)))), None)

    def drift(self, settings: Settings, placement: Placement) -> "Tensor":
        """What a placement makes least, for the settings' accelerator at their step count: float64 [S, S],
        measured once.
        """

        pipeline = self._pipeline(replace(settings, full_steps=1))
        assert settings.steps is not None
        assert pipeline.features_fn is not None
        mark = measure.fingerprint(pipeline, (pipeline.schedule(), self.drift_pictures))
        path = self.folder / f"{placement}-{pipeline.features_fn.name}-{settings.steps}-{mark}.json"
        if not path.exists():
            recording = self._recording(settings.steps)
            found_SS = drift(pipeline.features_fn, recording, DISTANCES[placement])
            write_text(path, json.dumps(found_SS.tolist()) + "\n")
        return _kept_drift(path)

    def _recording(self, steps: int) -> Recording:
        """Kept for the next accelerator at this step count, no longer: features are large."""
        if steps not in self._recordings:
            self._recordings.clear()
            self._recordings[steps] = record_decode(
                self.base.model,
                self.subjects.asked(DRIFT_SEED, self.drift_pictures),
                picture_seeds(DRIFT_SEED, self.drift_pictures),
                self.base.schedule(steps),
            )
        return self._recordings[steps]

    def _pipeline(self, settings: Settings) -> "Pipeline":
        """Built once for each accelerator: weights are read from disk."""
        accelerators = Settings(
            shortcut=settings.shortcut,
            caching=settings.caching,
            marval=settings.marval,
            speed_rl=settings.speed_rl,
        )
        if accelerators not in self._built:
            self._built[accelerators] = apply_settings(self.base, accelerators)
        return replace(
            self._built[accelerators],
            steps=settings.steps or self.base.steps,
            full_steps=settings.full_steps,
            full_steps_by_default=False,
            sampling=settings.sampling.over(self.base.sampling),
            _flops={},
        )

    def _series(self, settings: Settings) -> str:
        weights = [measure.student_name(w) for w in (settings.speed_rl, settings.marval) if w is not None]
        accelerator = settings.caching or ("" if settings.shortcut is None else "shortcut")
        return "+".join(part for part in (*weights, accelerator) if part) or "vanilla"


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


def own_sampling(base: "Pipeline") -> SamplingOptions:
    """What the model does when nothing is asked."""
    return base.sampling.over(getattr(base.model, "sampling", SamplingOptions()))


def sampling_grid(
    own: SamplingOptions,
    guidance: Sequence[float],
    temperature: Sequence[float],
    choice_temperature: Sequence[float],
    schedule_power: Sequence[float],
) -> list[SamplingOptions]:
    """Every combination of the given values but what the model does anyway, whose own values stay unsaid."""
    values = [
        [None if value == ours else value for value in given] or [None]
        for given, ours in (
            (guidance, own.guidance),
            (temperature, own.temperature),
            (choice_temperature, own.choice_temperature),
            (schedule_power, own.power),
        )
    ]
    grid = [
        SamplingOptions(guidance=g, temperature=t, choice_temperature=c, schedule_power=p)
        for g, t, c, p in product(*values)
    ]
    return [options for options in dict.fromkeys(grid) if options != SamplingOptions()]


def _kept_drift(path: Path) -> "Tensor":
    """What was measured before. Errors: ValueError if the file is damaged."""
    import torch

    rows = parse_json_list(read_text(path, expected="expected a drift"), source=str(path))
    try:
        found_SS = torch.tensor(rows, dtype=torch.float64)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}): remove it and run again") from error
    if found_SS.ndim != 2 or len(found_SS) != found_SS.shape[1]:
        raise ValueError(f"{path} holds no drift between steps: remove it and run again")
    return found_SS
