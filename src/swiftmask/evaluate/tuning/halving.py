"""Successive halving: few images for many candidates, twice as many for the better half, and so on.

Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization" (arXiv
1502.07943). Images come in evaluation seeds of equal size: a round has 1, 2, 4, ... of them for whoever is
still in, the same seeds for all, so candidates are compared image by image and none is generated twice.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from statistics import fmean, stdev

from swiftmask.evaluate.quantities import Quantity, Spread
from swiftmask.evaluate.study import Measurement, Row
from swiftmask.evaluate.summary import COST_TOLERANCE, mean_of

MeasureRows = Callable[[Sequence[Row], int], Sequence[Measurement]]
"""`measure(rows, num_seeds)`: every row under the first so many evaluation seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What must hold, and what is lost.

    Attributes:
        cost: at most, per image: operations, or milliseconds.
        in_ms: whether the cost is measured milliseconds. Operations are known before anything is generated.
        max_loss: relative loss against the best full model; None asks for the best quality there is.
    """

    cost: float
    objective: Quantity
    max_loss: float | None = None
    in_ms: bool = False

    def affords(self, cost: float) -> bool:
        return cost <= self.cost * (1 + COST_TOLERANCE)

    def may_afford(self, row: Row) -> bool:
        """As far as is known before anything is generated."""
        return self.in_ms or self.affords(row.flops)

    def met_by(self, tried: "Tried") -> bool:
        cheap = self.affords(tried.cost)
        return cheap and (self.max_loss is None or tried.loss.mean <= self.max_loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A row and what is known of it.

    Attributes:
        images: that it has generated.
        cost: in the unit of the goal.
        loss: relative, against the best full model on the same images; the spread is its standard error over
            evaluation seeds (0 for a single one).
    """

    row: Row
    images: int
    values: dict[str, Spread]
    loss: Spread
    cost: float
    ms: float

    @property
    def name(self) -> str:
        return self.row.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a round found: candidates and, beside them, full models, the best first.

    Attributes:
        num_seeds: evaluation seeds that all of them have.
    """

    tried: list[Tried]
    full: list[Row]
    num_seeds: int

    @property
    def candidates(self) -> list[Row]:
        return [tried.row for tried in self.tried]


def halve(
    candidates: Sequence[Row],
    full: Sequence[Row],
    goal: Goal,
    measure: MeasureRows,
    *,
    keep: int,
    on_round: Callable[[Round], None] = lambda found: None,
) -> Round:
    """Halve `candidates` until `keep` are left, and the full models beside them until one is.

    Errors: ValueError without candidates or full models.
    """
    if not candidates or not full:
        raise ValueError(f"nothing to compare: {len(candidates)} candidates, {len(full)} full models")
    pool, anchors, num_seeds = list(candidates), list(full), 1
    while True:
        found = compare(pool, anchors, goal, measure(rows_of(pool, anchors), num_seeds))
        on_round(found)
        found = replace(found, tried=survivors(found.tried, max(keep, ceil(len(pool) / 2))))
        if len(found.tried) <= keep:
            return found
        pool, anchors = found.candidates, found.full[: ceil(len(anchors) / 2)]
        num_seeds *= 2


def challenge(
    best: Round,
    newcomers: Iterable[Row],
    goal: Goal,
    measure: MeasureRows,
    *,
    keep: int,
    on_round: Callable[[Round], None] = lambda found: None,
) -> Round:
    """Halve newcomers until `keep` are left, and compare those with the earlier best on as many images as
    either have: nothing is dropped for less than it was kept for.
    """
    full, pool, num_seeds = best.full[:1], best.candidates, best.num_seeds
    if newcomers := [one for one in newcomers if goal.may_afford(one)]:
        left = halve(newcomers, full, goal, measure, keep=keep, on_round=on_round)
        pool, num_seeds = [*pool, *left.candidates], max(num_seeds, left.num_seeds)
    found = compare(pool, full, goal, measure(rows_of(pool, full), num_seeds))
    on_round(found)
    return replace(found, tried=survivors(found.tried, keep))


def compare(
    candidates: Sequence[Row],
    full: Sequence[Row],
    goal: Goal,
    measurements: Sequence[Measurement],
) -> Round:
    """`candidates`, the best first, against the best of `full` on the same images."""
    by_row: dict[str, list[Measurement]] = {}
    for measurement in sorted(measurements, key=lambda m: m.seed):
        by_row.setdefault(measurement.row, []).append(measurement)
    ranked = sorted(full, key=lambda candidate: _badness(by_row[candidate.name], goal))
    baseline = by_row[ranked[0].name]
    tried = [tried_of(one, by_row[one.name], baseline, goal) for one in candidates]
    return Round(tried=sorted(tried, key=lambda t: merit(t, goal)), full=ranked, num_seeds=len(baseline))


def tried_of(row: Row, own: Sequence[Measurement], baseline: Sequence[Measurement], goal: Goal) -> Tried:
    """What paired measurements (same seeds in the same order) say about a candidate."""
    ms = fmean(m.ms for m in own)
    return Tried(
        row=row,
        images=sum(m.num_images for m in own),
        values={key: Spread.of([m.values[key] for m in own if key in m.values]) for key in own[0].values},
        loss=_loss(own, baseline, goal),
        cost=ms if goal.in_ms else row.flops,
        ms=ms,
    )


def merit(tried: Tried, goal: Goal) -> tuple[bool, float, float, float]:
    """Smaller is better. Under a bound on the loss: those that meet it, cheapest first, then by how far they
    miss it. Without one: by the loss.

    Costs count to three digits: placements of as many full steps differ in the fourth, and are told apart by
    their loss.
    """
    loss, cost = tried.loss.mean, float(f"{tried.cost:.2e}")
    missed = loss if goal.max_loss is None else max(0.0, loss - goal.max_loss)
    return not goal.affords(tried.cost), missed, cost, loss


def survivors(tried: Sequence[Tried], num: int) -> list[Tried]:
    """The first `num`, and in the place of the last of them the one that loses least.

    Under a bound on the loss the cheapest go first, and few images flatter some: without that one, a round
    could drop everything that truly meets the bound.
    """
    kept = list(tried[:num])
    safest = min(tried, key=lambda one: one.loss.mean)
    return kept if safest in kept or num < 2 else [*kept[:-1], safest]


def rows_of(*groups: Sequence[Row]) -> list[Row]:
    """Each once: a full model may be candidate and anchor. Errors: ValueError for two of one name."""
    rows: dict[str, Row] = {}
    for one in (one for group in groups for one in group):
        if rows.setdefault(one.name, one).fingerprint != one.fingerprint:
            raise ValueError(f"two candidates are called {one.name}")
    return list(rows.values())


def _badness(own: Sequence[Measurement], goal: Goal) -> float:
    """Smaller is better."""
    mean = mean_of(own, goal.objective.key)
    return -mean if goal.objective.higher_is_better else mean


def _loss(own: Sequence[Measurement], baseline: Sequence[Measurement], goal: Goal) -> Spread:
    assert [m.seed for m in own] == [m.seed for m in baseline], "candidates need the same evaluation seeds"
    best = abs(_badness(baseline, goal))
    if best == 0:
        raise ValueError("the full model scores 0: there is nothing to lose, train it first")
    pairs = zip(own, baseline, strict=True)
    worse = [(_badness([mine], goal) - _badness([theirs], goal)) / best for mine, theirs in pairs]
    return Spread(fmean(worse), stdev(worse) / sqrt(len(worse)) if len(worse) > 1 else 0.0)
