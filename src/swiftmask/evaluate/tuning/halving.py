"""Successive halving: few pictures for many candidates, twice as many for the better half, and so on.

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization" (arXiv
1502.07943). Pictures come in evaluation seeds of equal size: round r has drawn 2^r of them for whoever is
still in, the same seeds for all, so that candidates are compared picture by picture and none is drawn twice.
What a candidate costs is known before anything is drawn, so a bound on the cost only decides who takes part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from statistics import fmean, stdev
from typing import Literal

from swiftmask.evaluate.presets import Settings
from swiftmask.evaluate.quality import Measurement, Row
from swiftmask.evaluate.summary import COST_TOLERANCE, Spread

Objective = Literal["score", "fd_scenes"]

MeasureRows = Callable[[Sequence[Row], int], Sequence[Measurement]]
"""`measure(rows, num_seeds)`: every row under the first so many evaluation seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What must hold.

    Attributes:
        flops: at most, for the token decode of a picture (within `COST_TOLERANCE`).
        max_loss: relative loss against the best full model; None asks for the best quality there is.
        objective: what is lost: judge score (higher is better) or fd_scenes (lower is better).
    """

    flops: float
    max_loss: float | None = None
    objective: Objective = "score"

    def affords(self, flops: float) -> bool:
        return flops <= self.flops * (1 + COST_TOLERANCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Settings, and the row of a study that draws with them.

    Attributes:
        placement: of the full steps, where it is not uniform; the row's name says it, too.
    """

    settings: Settings
    row: Row
    placement: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A candidate and what is known of it.

    Attributes:
        pictures: that it has drawn.
        loss: relative, against the best full model on the same pictures; the spread is its standard error
            over evaluation seeds (0 for a single one).
    """

    candidate: Candidate
    pictures: int
    score: Spread
    fd_scenes: Spread
    loss: Spread
    ms_per_picture: float

    def meets(self, bounds: Bounds) -> bool:
        cheap = bounds.affords(self.candidate.row.flops)
        return cheap and (bounds.max_loss is None or self.loss.mean <= bounds.max_loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a round found: candidates and, beside them, full models, the best first.

    Attributes:
        num_seeds: evaluation seeds that all of them drew.
    """

    standings: list[Standing]
    full: list[Candidate]
    num_seeds: int

    @property
    def candidates(self) -> list[Candidate]:
        return [standing.candidate for standing in self.standings]

    def kept(self, num: int) -> "Round":
        """The same round with the survivors alone."""
        return replace(self, standings=survivors(self.standings, num))


def halve(
    candidates: Sequence[Candidate],
    full: Sequence[Candidate],
    bounds: Bounds,
    measure: MeasureRows,
    *,
    keep: int,
    on_round: Callable[[Round], None] = lambda found: None,
) -> Round:
    """Halve `candidates` until `keep` are left, and the full models beside them until one is.

    Returns the last round with those that are kept.

    Errors: ValueError without candidates or full models.
    """
    if not candidates or not full:
        raise ValueError(f"nothing to compare: {len(candidates)} candidates, {len(full)} full models")
    pool, anchors, num_seeds = list(candidates), list(full), 1
    while True:
        found = compare(pool, anchors, bounds, measure(_rows([*pool, *anchors]), num_seeds))
        on_round(found)
        kept = found.kept(max(keep, ceil(len(pool) / 2)))
        if len(kept.standings) <= keep:
            return kept
        pool, anchors = kept.candidates, found.full[: ceil(len(anchors) / 2)]
        num_seeds *= 2


def challenge(
    champions: Round,
    newcomers: Sequence[Candidate],
    bounds: Bounds,
    measure: MeasureRows,
    *,
    keep: int,
    on_round: Callable[[Round], None] = lambda found: None,
) -> Round:
    """Halve newcomers among themselves until `keep` are left, which then meet the champions of an earlier
    halving under as many evaluation seeds as either have seen: nobody is dropped for less than they were
    kept for.

    Returns that meeting with the best `keep`.
    """
    if not newcomers:
        return champions.kept(keep)
    best_full = champions.full[:1]
    left = halve(newcomers, best_full, bounds, measure, keep=keep, on_round=on_round)
    pool, num_seeds = [*champions.candidates, *left.candidates], max(champions.num_seeds, left.num_seeds)
    found = compare(pool, best_full, bounds, measure(_rows([*pool, *best_full]), num_seeds))
    on_round(found)
    return found.kept(keep)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a halving will cost, before it is known who stays: operations, times the pictures of an evaluation
    seed, and how many of these seeds the last draw.
    """

    flops: float
    num_seeds: int


def plan(flops: float, num: int, full_flops: float, num_full: int, *, keep: int) -> Plan:
    """Of `halve` with `num` candidates of so many operations a picture; those that stay may be dearer."""
    total, drawn, num_seeds = 0.0, 0, 1
    while True:
        total += (num * flops + num_full * full_flops) * (num_seeds - drawn)
        num, num_full = max(keep, ceil(num / 2)), ceil(num_full / 2)
        if num <= keep:
            return Plan(flops=total, num_seeds=num_seeds)
        drawn, num_seeds = num_seeds, 2 * num_seeds


def compare(
    candidates: Sequence[Candidate],
    full: Sequence[Candidate],
    bounds: Bounds,
    measurements: Sequence[Measurement],
) -> Round:
    """Standings of `candidates`, the best first, against the best of `full` on the same pictures."""
    by_row: dict[str, list[Measurement]] = {}
    for measurement in sorted(measurements, key=lambda m: m.seed):
        by_row.setdefault(measurement.row, []).append(measurement)
    ranked = sorted(full, key=lambda candidate: _badness(by_row[candidate.row.name], bounds.objective))
    baseline = by_row[ranked[0].row.name]
    standings = [
        standing_of(candidate, by_row[candidate.row.name], baseline, bounds.objective)
        for candidate in candidates
    ]
    best_first = sorted(standings, key=lambda s: merit(s, bounds))
    return Round(standings=best_first, full=ranked, num_seeds=len(baseline))


def standing_of(
    candidate: Candidate, own: Sequence[Measurement], baseline: Sequence[Measurement], objective: Objective
) -> Standing:
    """What paired measurements (same seeds in the same order) say about a candidate."""
    return Standing(
        candidate=candidate,
        pictures=sum(m.num_pictures for m in own),
        score=Spread.of([m.score for m in own]),
        fd_scenes=Spread.of([m.fd_scenes for m in own]),
        loss=_loss(own, baseline, objective),
        ms_per_picture=fmean(m.ms_per_picture for m in own),
    )


def merit(standing: Standing, bounds: Bounds) -> tuple[float, float, float]:
    """Smaller is better. Under a bound on the loss: those that meet it, cheapest first, then by how far they
    miss it. Without one: by the loss.

    Costs count to three digits: placements of as many full steps differ in the fourth, and are told apart by
    their loss.
    """
    loss, flops = standing.loss.mean, float(f"{standing.candidate.row.flops:.2e}")
    return (loss if bounds.max_loss is None else max(0.0, loss - bounds.max_loss)), flops, loss


def survivors(standings: Sequence[Standing], num: int) -> list[Standing]:
    """The first `num`, and in the place of the last of them the one that loses least.

    Under a bound on the loss the cheapest go first, and few pictures flatter some: without that one, a round
    could drop everything that truly meets the bound.
    """
    kept = list(standings[:num])
    safest = min(standings, key=lambda standing: standing.loss.mean)
    return kept if safest in kept or num < 2 else [*kept[:-1], safest]


def _rows(candidates: Sequence[Candidate]) -> list[Row]:
    """Each once: a full model may be candidate and anchor. Errors: ValueError for two of one name."""
    rows: dict[str, Row] = {}
    for candidate in candidates:
        if rows.setdefault(candidate.row.name, candidate.row).fingerprint != candidate.row.fingerprint:
            raise ValueError(f"two candidates are called {candidate.row.name}")
    return list(rows.values())


def _badness(own: Sequence[Measurement], objective: Objective) -> float:
    """Smaller is better."""
    return -fmean(m.score for m in own) if objective == "score" else fmean(m.fd_scenes for m in own)


def _loss(own: Sequence[Measurement], baseline: Sequence[Measurement], objective: Objective) -> Spread:
    assert [m.seed for m in own] == [m.seed for m in baseline], "candidates need the same evaluation seeds"
    best = abs(_badness(baseline, objective))
    if best == 0:
        raise ValueError("the full model scores 0: there is nothing to lose, train it first")
    worse = [
        (_badness([mine], objective) - _badness([theirs], objective)) / best
        for mine, theirs in zip(own, baseline, strict=True)
    ]
    return Spread(fmean(worse), stdev(worse) / sqrt(len(worse)) if len(worse) > 1 else 0.0)
