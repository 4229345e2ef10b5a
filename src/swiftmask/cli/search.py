"""The search of `swiftmask tune`: budgets, placements of the best, their sampling, then fresh pictures.

Each of the three stages is a successive halving (evaluate/tuning/halving.py) over the same evaluation seeds,
and what it leaves meets the best of the stage before; what is left then is measured once more on pictures
that no stage has looked at.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, get_args

from swiftmask.cli.candidates import Placement, Workshop, own_sampling, sampling_grid
from swiftmask.core.protocol import SamplingOptions
from swiftmask.evaluate.presets import Settings
from swiftmask.evaluate.quality import Draw, Drawn, RealPictures, Row, Sample
from swiftmask.evaluate.study import Store, run_study
from swiftmask.evaluate.subjects import Subjects
from swiftmask.evaluate.tuning.halving import (
    Bounds,
    Candidate,
    Round,
    Standing,
    challenge,
    compare,
    halve,
    merit,
    plan,
)

if TYPE_CHECKING:
    from swiftmask.evaluate.quality import Measurement

SHORTCUT_SHARES = (1 / 4, 3 / 8, 1 / 2, 3 / 4)
RIVAL_SHARES = (1 / 2, 3 / 4)
"""Shares of full steps that a bound on the loss lets try; rivals of the shortcut need more of them."""

Stage = Literal["budgets", "placements", "sampling"]

KEPT: dict[Stage, int] = {"budgets": 3, "placements": 2, "sampling": 3}
"""How many each stage leaves to the next; the last leaves the finalists."""

_CHAMPIONS: dict[Stage, int] = {"budgets": 0, "placements": KEPT["budgets"], "sampling": KEPT["placements"]}
"""How many each begins with."""

FRESH_SEEDS = 1 << 36
"""Added to the image seeds of the pictures that the finalists are measured on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What is searched.

    Attributes:
        steps: step counts.
        reference_steps: of the full model that speed-ups are relative to.
        shortcut, marval, speed_rl: accelerators that need weights, where there are any.
        rivals: cachings.
        denoising_steps: of a diffusion head.
        guidance, temperature, choice_temperature, schedule_power: values to try on the best of what the rest
            gives.
    """

    steps: tuple[int, ...]
    reference_steps: int
    shortcut: str | None = None
    marval: str | None = None
    speed_rl: str | None = None
    rivals: tuple[str, ...] = ()
    denoising_steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()
    temperature: tuple[float, ...] = ()
    choice_temperature: tuple[float, ...] = ()
    schedule_power: tuple[float, ...] = ()

    def full(self) -> list[Settings]:
        """The full model with its own sampling, which losses are relative to."""
        return [Settings(steps=steps) for steps in sorted({*self.steps, self.reference_steps})]


@dataclass
class Meter:
    """Operations planned and done, for a bar with the time left."""

    show: Callable[[float, float, str], None]
    done: float = 0.0
    left: float = 0.0
    stage: str = ""
    drawn: dict[str, int] = field(default_factory=dict)

    def plan(self, stage: str, left: float) -> None:
        """A stage begins, and so much is left in all."""
        self.stage, self.left = stage, left
        self.show(self.done, self.done + self.left, stage)

    def following(self, rows: Sequence[Row]) -> Callable[[str, int], None]:
        """What a study of these rows tells about its progress; pictures of earlier rounds count once."""
        by_name, told = {row.name: row for row in rows}, dict.fromkeys((row.name for row in rows), 0)

        def advance(name: str, count: int) -> None:
            row = by_name[name]
            told[name] += count
            fresh = max(0, told[name] - self.drawn.get(row.fingerprint, 0))
            self.drawn[row.fingerprint] = self.drawn.get(row.fingerprint, 0) + fresh
            self.done += row.flops * fresh
            self.left = max(0.0, self.left - row.flops * fresh)
            self.show(self.done, self.done + self.left, f"{self.stage}: {name}")

        return advance


@dataclass(frozen=True, slots=True, kw_only=True)
class Finals:
    """The finalists, the best first, and the full models beside them, all on fresh images."""

    finalists: list[Standing]
    best_full: Standing
    reference: Standing


@dataclass(frozen=True, kw_only=True)
class Search:
    """One search over `space`, within `bounds`.

    Attributes:
        sample: images of an evaluation seed of the search.
        confirming: the images that finalists are measured on.
        seen: what is known of every candidate from the most images it generated, by name.
    """

    shop: Workshop
    space: Space
    bounds: Bounds
    store: Store
    real: RealPictures
    sample: Sample
    confirming: Sample
    meter: Meter
    seen: dict[str, Standing] = field(default_factory=dict)

    def run(self) -> Finals:
        """What is left, on fresh pictures. Errors: ValueError if nothing is cheap enough to be tried."""
        pool = budgets(self.shop, self.space, self.bounds)
        if not pool:
            gflop = self.shop.flops(Settings(steps=1)) / 1e9
            raise ValueError(
                f"nothing in {min(self.space.steps)} or more decode steps meets the bound of "
                f"{self.bounds.flops / 1e9:.4g} GFLOP an image: one step of the full model takes {gflop:.4g}"
            )
        full = [self.shop.candidate(settings) for settings in self.space.full()]
        self._plan("budgets", pool, full)
        found = halve(pool, full, self.bounds, self._measure, keep=KEPT["budgets"], on_round=self._remember)
        changes: dict[Stage, Callable[[Candidate], Iterator[Candidate]]] = {
            "placements": self.shop.other_placements,
            "sampling": self._sampled,
        }
        for stage, changed in changes.items():
            newcomers = [other for one in found.candidates for other in changed(one) if self._affords(other)]
            self._plan(stage, newcomers or found.candidates, found.full[:1], found.num_seeds)
            found = challenge(
                found,
                newcomers,
                self.bounds,
                self._measure,
                keep=KEPT[stage],
                on_round=self._remember,
            )
        return self._confirm(found.candidates, found.full[0])

    def ranked(self) -> list[Standing]:
        """All that was tried: those seen longest first, the best of them first."""
        return sorted(self.seen.values(), key=lambda s: (-s.pictures, merit(s, self.bounds)))

    def _confirm(self, finalists: list[Candidate], best_full: Candidate) -> Finals:
        reference = self.shop.candidate(Settings(steps=self.space.reference_steps))
        every = {one.row.name: _on_fresh_pictures(one) for one in (*finalists, best_full, reference)}
        full = [every[name] for name in dict.fromkeys((best_full.row.name, reference.row.name))]
        rows = [one.row for one in every.values()]
        self.meter.plan("confirming", self._confirming_flops([row.flops for row in rows]))
        measured = run_study(rows, self.confirming, self.store, self.real, self.meter.following(rows))
        found = compare(list(every.values()), full, self.bounds, measured)
        by_name = {standing.candidate.row.name: standing for standing in found.standings}
        names = {one.row.name for one in finalists}
        return Finals(
            finalists=[standing for name, standing in by_name.items() if name in names],
            best_full=by_name[found.full[0].row.name],
            reference=by_name[reference.row.name],
        )

    def _measure(self, rows: Sequence[Row], num_seeds: int) -> "list[Measurement]":
        sample = replace(self.sample, num_seeds=num_seeds)
        return run_study(rows, sample, self.store, self.real, self.meter.following(rows))

    def _remember(self, found: Round) -> None:
        """A later stage begins with fewer pictures: what is known from more of them stays."""
        for standing in found.standings:
            known = self.seen.get(standing.candidate.row.name)
            if known is None or known.pictures <= standing.pictures:
                self.seen[standing.candidate.row.name] = standing

    def _sampled(self, candidate: Candidate) -> "Iterator[Candidate]":
        """The candidate with other guidance, temperatures and schedules."""
        settings = candidate.settings
        for options in self._grid(settings):
            changed = replace(settings, sampling=options.over(settings.sampling))
            yield self.shop.candidate(changed, candidate.placement)

    def _affords(self, candidate: Candidate) -> bool:
        return self.bounds.affords(candidate.row.flops)

    def _plan(self, stage: Stage, pool: list[Candidate], full: list[Candidate], known_seeds: int = 0) -> None:
        """Operations from this stage on, as far as they can be told.

        Args:
            known_seeds: evaluation seeds that the champions it begins with have drawn.
        """
        mean, mean_full = (fmean(one.row.flops for one in some) for some in (pool, full))
        stages: list[Stage] = list(KEPT)[list(KEPT).index(stage) :]
        newcomers = {
            "placements": (len(get_args(Placement)) - 1) * KEPT["budgets"],
            "sampling": KEPT["placements"] * len(self._grid(Settings())),
            stage: len(pool),
        }
        left = self._confirming_flops([mean] * KEPT["sampling"] + [mean_full] * 2)
        for one in stages:
            num_full = len(full) if one == stage else 1
            planned = plan(mean, newcomers[one], mean_full, num_full, keep=KEPT[one])
            meeting = max(known_seeds, planned.num_seeds)
            behind = KEPT[one] * (meeting - planned.num_seeds)
            if known_seeds:
                behind += _CHAMPIONS[one] * (meeting - known_seeds)
            left += self.sample.num_pictures * (planned.flops + behind * mean)
            known_seeds = meeting
        self.meter.plan(stage, left)

    def _grid(self, settings: Settings) -> list[SamplingOptions]:
        """What to try on these settings; a guidance that makes them cheap is left alone."""
        has_guidance = settings.sampling.guidance is not None or settings.marval is not None
        guidance = () if has_guidance else self.space.guidance
        own, space = own_sampling(self.shop.base), self.space
        return sampling_grid(own, guidance, space.temperature, space.choice_temperature, space.schedule_power)

    def _confirming_flops(self, flops: Sequence[float]) -> float:
        return sum(flops) * self.confirming.num_pictures * self.confirming.num_seeds


def require_affordable(shop: Workshop, space: Space, bounds: Bounds) -> None:
    """Errors: ValueError if the cheapest decode there can be costs more than the bound."""
    guided = own_sampling(shop.base).guidance not in (None, 1.0)
    fewest = min(space.denoising_steps, default=None)
    unguided = SamplingOptions(guidance=1.0 if guided else None, denoising_steps=fewest)
    a_step = [Settings(steps=1, sampling=unguided)]
    a_step += [] if space.marval is None else [Settings(steps=1, marval=space.marval)]
    cheapest = min(map(shop.flops, a_step))
    if not bounds.affords(cheapest):
        raise ValueError(
            f"nothing meets the bound of {bounds.flops / 1e9:.4g} GFLOP an image: the cheapest decode, one "
            f"step without guidance, takes {cheapest / 1e9:.4g}"
        )


def budgets(shop: Workshop, space: Space, bounds: Bounds) -> list[Candidate]:
    """Everything that the bound on the cost affords: fewer steps, other weights, and accelerators with as
    many full steps as it pays for (under a bound on the loss: with several shares of full steps).

    The reference itself is no answer and left out.
    """
    settings = dict.fromkeys([*_unaccelerated(shop, space, bounds), *_budgeted(shop, space, bounds)])
    settings.pop(Settings(steps=space.reference_steps), None)
    return [shop.candidate(one) for one in settings if bounds.affords(shop.flops(one))]


def _unaccelerated(shop: Workshop, space: Space, bounds: Bounds) -> Iterator[Settings]:
    """The full model with fewer steps, unguided (which halves its cost), with shorter denoising, and other
    weights in its place.
    """
    a_step = shop.flops(Settings(steps=space.reference_steps)) / space.reference_steps
    fitting = min(int(bounds.flops / a_step + 0.5), space.reference_steps)
    for steps in sorted({*space.steps, *(n for n in (fitting - 1, fitting) if n > 0)}):
        yield Settings(steps=steps)
        for count in space.denoising_steps:
            yield Settings(steps=steps, sampling=SamplingOptions(denoising_steps=count))
    if own_sampling(shop.base).guidance not in (None, 1.0):
        unguided = [Settings(steps=n, sampling=SamplingOptions(guidance=1.0)) for n in sorted(space.steps)]
        yield from [one for one in unguided if bounds.affords(shop.flops(one))][-1:]
    for steps in space.steps:
        yield from (Settings(steps=steps, marval=source) for source in (space.marval,) if source is not None)
        yield from (
            Settings(steps=steps, speed_rl=source) for source in (space.speed_rl,) if source is not None
        )


def _budgeted(shop: Workshop, space: Space, bounds: Bounds) -> Iterator[Settings]:
    """Accelerators, with the counts of full steps that are worth a try."""
    for steps in (n for n in space.steps if n > 1):
        for settings in _accelerators(space, Settings(steps=steps)):
            shares = SHORTCUT_SHARES if settings.caching is None else RIVAL_SHARES
            counts = {max(1, round(share * steps)) for share in shares if bounds.max_loss is not None}
            largest = shop.largest_fitting(settings, bounds)
            if largest is not None and largest < max(counts, default=steps):
                counts.add(largest)
            yield from (replace(settings, full_steps=count) for count in sorted(counts))


def _accelerators(space: Space, settings: Settings) -> Iterator[Settings]:
    if space.shortcut is not None:
        yield replace(settings, shortcut=space.shortcut)
    yield from (replace(settings, caching=rival) for rival in space.rivals)


def _on_fresh_pictures(candidate: Candidate) -> Candidate:
    """The candidate drawing with image seeds that the search did not use."""
    row = candidate.row
    fresh = replace(row, draw=_shifted(row.draw), fingerprint=f"{row.fingerprint}-fresh")
    return replace(candidate, row=fresh)


def _shifted(draw: Draw) -> Draw:
    def shifted(what: Any, seeds: list[int]) -> Drawn:
        return draw(what, [FRESH_SEEDS + seed for seed in seeds])

    return shifted


@dataclass(frozen=True, slots=True)
class Undiversified:
    """Subjects whose diversity within a prompt is not measured: it takes four times the images."""

    subjects: Subjects

    def asked(self, seed: int, count: int) -> Sequence[Any]:
        return self.subjects.asked(seed, count)

    def varied(self, seed: int, count: int) -> Sequence[Any]:
        return ()

    def facts(self, asked: Sequence[Any]) -> Any:
        return self.subjects.facts(asked)

    def real(self, first: int, seed: int, count: int) -> Iterator[Any]:
        return self.subjects.real(first, seed, count)
