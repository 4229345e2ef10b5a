"""The search of `swiftmask tune`: budgets, placements of the best, their sampling, then fresh images.

Each of the first three stages is a successive halving (evaluate/tuning/halving.py) over the same evaluation
seeds, and what it leaves is compared with the best of the stage before. What is left then is measured once
more on images that no stage has looked at.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.cli import measure
from swiftmask.cli.rows import Rows, own_sampling
from swiftmask.cli.scoring import measured
from swiftmask.cli.tune import Space
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.schedule import uniform_full_steps
from swiftmask.core.settings import first_line, parse_json_list, read_text
from swiftmask.core.writing import write_text
from swiftmask.evaluate.presets import Settings
from swiftmask.evaluate.study import Measurement, Row, Sample, Study
from swiftmask.evaluate.tuning.feature_drift import DISTANCES, Recording, drift, record_decode
from swiftmask.evaluate.tuning.halving import (
    Goal,
    Round,
    Tried,
    challenge,
    compare,
    halve,
    merit,
    rows_of,
)
from swiftmask.evaluate.tuning.placement import front_loaded_full_steps, optimised_full_steps
from swiftmask.pipeline import Pipeline

_SHORTCUT_SHARES = (1 / 4, 3 / 8, 1 / 2, 3 / 4)
_BASELINE_SHARES = (1 / 2, 3 / 4)
"""Shares of full steps to try where no bound on the cost says how many; baselines need more of them."""

_KEPT = {"budgets": 3, "placements": 2, "sampling": 3}
"""How many each stage leaves to the next; the last leaves the finalists."""

_DRIFT_SEED = 10_000
"""Evaluation seed of the images that drift is measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The finalists, the best first, and the full models beside them, all on fresh images."""

    finalists: list[Tried]
    best_full: Tried
    reference: Tried


@dataclass(frozen=True, kw_only=True)
class Search:
    """Budgets, then placements of the best, then their sampling, then fresh images.

    Attributes:
        searched: images of an evaluation seed of the search.
        confirming: the images that finalists are measured on.
        seen: what is known of every candidate from the most images it generated, by name.
    """

    rows_of: Rows
    study: Study
    space: Space
    searched: Sample
    confirming: Sample
    drift_images: int
    seen: dict[str, Tried] = field(default_factory=dict)
    _recordings: dict[int, Recording] = field(default_factory=dict)

    @property
    def reference(self) -> Row:
        return self.rows_of.row(Settings(steps=self.reference_steps))

    @property
    def reference_steps(self) -> int:
        return self.space.reference_steps or self.rows_of.base.steps

    def run(self, goal: Goal) -> Found:
        """What is left, on fresh images. Errors: ValueError if nothing is cheap enough to be tried."""
        pool = self.budgets(goal)
        if not pool:
            gflop = self.rows_of.flops(Settings(steps=1)) / 1e9
            raise ValueError(
                f"nothing in {min(self.space.steps)} or more decode steps meets the bound of "
                f"{goal.cost / 1e9:.4g} GFLOP an image: one step of the full model takes {gflop:.4g}"
            )
        counts = sorted({*self.space.steps, self.reference_steps})
        full = [self.rows_of.row(Settings(steps=steps)) for steps in counts]
        best = halve(pool, full, goal, self.measure, keep=_KEPT["budgets"], on_round=self._remember)
        for stage, changed in (("placements", self._placements), ("sampling", self._sampled)):
            newcomers = [other for one in best.candidates for other in changed(one)]
            best = challenge(best, newcomers, goal, self.measure, keep=_KEPT[stage], on_round=self._remember)
        full = list({one.name: one for one in (best.full[0], self.reference)}.values())
        every = list({one.name: one for one in (*best.candidates, *full)}.values())
        fresh = compare(
            every, full, goal, measured(self.study, rows_of(every), self.confirming, "fresh images")
        )
        by_name = {tried.name: tried for tried in fresh.tried}
        names = {one.name for one in best.candidates}
        return Found(
            finalists=[tried for tried in fresh.tried if tried.name in names],
            best_full=by_name[fresh.full[0].name],
            reference=by_name[self.reference.name],
        )

    def ranked(self, goal: Goal) -> list[Tried]:
        """All that was tried: those with most images first, the best of them first."""
        return sorted(self.seen.values(), key=lambda tried: (-tried.images, merit(tried, goal)))

    def measure(self, rows: Sequence[Row], num_seeds: int) -> list[Measurement]:
        """Every row under the first evaluation seeds of the search."""
        sample = replace(self.searched, num_seeds=num_seeds)
        return measured(self.study, rows, sample, f"{len(rows)} candidates")

    def require_affordable(self, goal: Goal) -> None:
        """Errors: ValueError if the cheapest decode there can be costs more operations than the bound."""
        guided = own_sampling(self.rows_of.base).guidance not in (None, 1.0)
        fewest = min(self.space.denoising_steps, default=None)
        unguided = SamplingOptions(guidance=1.0 if guided else None, denoising_steps=fewest)
        a_step = [Settings(steps=1, sampling=unguided)]
        a_step += [Settings(steps=1, marval=source) for source in _named(self.space.marval)]
        cheapest = min(map(self.rows_of.flops, a_step))
        if not goal.in_ms and not goal.affords(cheapest):
            raise ValueError(
                f"nothing meets the bound of {goal.cost / 1e9:.4g} GFLOP an image: the cheapest decode, one "
                f"step without guidance, takes {cheapest / 1e9:.4g}"
            )

    def _remember(self, found: Round) -> None:
        """A later stage begins with fewer images: what is known from more of them stays."""
        for tried in found.tried:
            known = self.seen.get(tried.name)
            if known is None or known.images <= tried.images:
                self.seen[tried.name] = tried

    def budgets(self, goal: Goal) -> list[Row]:
        """Everything that the bound on the cost affords: fewer steps, other weights, and accelerators with as
        many full steps as it pays for. Where it is not in operations, or the loss is bounded: with several
        shares of full steps. The reference itself is no answer and left out.
        """
        wanted = dict.fromkeys([*self._unaccelerated(goal), *self._accelerated(goal)])
        wanted.pop(Settings(steps=self.reference_steps), None)
        cheap = [one for one in wanted if goal.in_ms or goal.affords(self.rows_of.flops(one))]
        return [self.rows_of.row(one) for one in cheap]

    def _unaccelerated(self, goal: Goal) -> Iterator[Settings]:
        """The full model with fewer steps, unguided, with shorter denoising, and other weights."""
        space, counts = self.space, {*self.space.steps}
        if not goal.in_ms:  # as many steps as the bound pays for
            a_step = self.rows_of.flops(Settings(steps=self.reference_steps)) / self.reference_steps
            fitting = min(int(goal.cost / a_step + 0.5), self.reference_steps)
            counts |= {count for count in (fitting - 1, fitting) if count > 0}
        for steps in sorted(counts):
            yield Settings(steps=steps)
            for count in space.denoising_steps:
                yield Settings(steps=steps, sampling=SamplingOptions(denoising_steps=count))
        if own_sampling(self.rows_of.base).guidance not in (None, 1.0):
            off = [Settings(steps=n, sampling=SamplingOptions(guidance=1.0)) for n in sorted(space.steps)]
            yield from [one for one in off if goal.in_ms or goal.affords(self.rows_of.flops(one))][-1:]
        for steps in space.steps:
            yield from (Settings(steps=steps, marval=source) for source in _named(space.marval))
            yield from (Settings(steps=steps, speed_rl=source) for source in _named(space.speed_rl))

    def _accelerated(self, goal: Goal) -> Iterator[Settings]:
        accelerators = [Settings(shortcut=source) for source in _named(self.space.shortcut)]
        accelerators += [Settings(caching=baseline) for baseline in self.space.baselines or ()]
        for steps, accelerator in product((n for n in self.space.steps if n > 1), accelerators):
            settings = replace(accelerator, steps=steps)
            shares = _SHORTCUT_SHARES if settings.caching is None else _BASELINE_SHARES
            several = goal.max_loss is not None or goal.in_ms
            counts = {max(1, round(share * steps)) for share in shares if several}
            if not goal.in_ms:
                fitting = (
                    n
                    for n in range(steps - 1, 0, -1)
                    if goal.affords(self.rows_of.flops(replace(settings, full_steps=n)))
                )
                counts |= {n for n in [next(fitting, steps)] if n < max(counts, default=steps)}
            yield from (replace(settings, full_steps=count) for count in sorted(counts))

    def _placements(self, candidate: Row) -> Iterator[Row]:
        """The candidate with its full steps elsewhere, as many of them, where that makes a difference."""
        settings = candidate.settings
        if not isinstance(settings.full_steps, int) or settings.steps is None:
            return
        seen = {tuple(uniform_full_steps(settings.steps, settings.full_steps))}
        for placement in placements_of(settings, self.rows_of.base)[1:]:
            moved = self.placed(settings, settings.full_steps, placement)
            assert isinstance(moved.full_steps, tuple)
            if moved.full_steps not in seen:
                seen.add(moved.full_steps)
                yield self.rows_of.row(moved, placement=placement)

    def _sampled(self, candidate: Row) -> Iterator[Row]:
        """The candidate with other guidance, temperatures and schedules; a guidance that makes it cheap is
        left alone.
        """
        settings = candidate.settings
        guided = settings.sampling.guidance is None and settings.marval is None
        for options in self.space.sampling(own_sampling(self.rows_of.base), guided=guided):
            changed = replace(settings, sampling=options.over(settings.sampling))
            yield self.rows_of.row(changed, placement=candidate.placement)

    def placed(self, settings: Settings, num_full: int, placement: str) -> Settings:
        """The settings of an accelerator with so many full steps, placed.

        Errors: ValueError for an optimised placement of an accelerator that remembers too much, or for a
        drift of tokens that are no codes.
        """
        assert settings.steps is not None
        if placement == "uniform":
            return replace(settings, full_steps=num_full)
        if placement == "front-loaded":
            return replace(settings, full_steps=tuple(front_loaded_full_steps(settings.steps, num_full)))
        return replace(
            settings, full_steps=tuple(optimised_full_steps(self.drift(settings, placement), num_full))
        )

    def drift(self, settings: Settings, placement: str) -> Tensor:
        """What a placement makes least, for the settings' accelerator at their step count: float64 [S, S],
        measured once.
        """
        pipeline = self.rows_of.pipeline(replace(settings, full_steps=1))
        steps = pipeline.steps
        assert pipeline.features_fn is not None
        mark = measure.fingerprint(pipeline, (pipeline.schedule(), self.drift_images))
        path = self.study.folder / f"{placement}-{pipeline.features_fn.name}-{steps}-{mark}.json"
        if not path.exists():
            if steps not in self._recordings:  # no longer kept than needed: features are large
                self._recordings.clear()
                self._recordings[steps] = record_decode(
                    self.rows_of.base.model,
                    self.study.requests.asked(_DRIFT_SEED, self.drift_images),
                    self.study.requests.seeds(_DRIFT_SEED, self.drift_images),
                    self.rows_of.base.schedule(steps),
                )
            found_SS = drift(pipeline.features_fn, self._recordings[steps], DISTANCES[placement])
            write_text(path, json.dumps(found_SS.tolist()) + "\n")
        return _kept_drift(path)


def _named(source: str) -> list[str]:
    """The weights that an option names, if it names any."""
    return [] if source == "none" else [source]


def _kept_drift(path: Path) -> Tensor:
    """What was measured before. Errors: ValueError if the file is damaged."""
    rows = parse_json_list(read_text(path, expected="expected a drift"), source=str(path))
    try:
        found_SS = torch.tensor(rows, dtype=torch.float64)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}): remove it and run again") from error
    if found_SS.ndim != 2 or len(found_SS) != found_SS.shape[1]:
        raise ValueError(f"{path} holds no drift between steps: remove it and run again")
    return found_SS


def placements_of(settings: Settings, base: Pipeline) -> list[str]:
    """Those there are for an accelerator. The drift of a segment must depend on the full step that it starts
    with alone.
    """
    placements = ["uniform", "front-loaded"]
    if settings.shortcut is not None or settings.caching == "reuse":
        placements.append("feature-drift")
        placements += ["token-drift"] if base.model.spec.codebook_size is not None else []
    return placements
