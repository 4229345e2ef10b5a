"""What a study found: means and spreads over evaluation seeds, and what fewer steps at equal cost give."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TypeVar

from swiftmask.core.settings import read_json, record_of
from swiftmask.core.writing import write_text
from swiftmask.evaluate.quantities import Quantity, Spread
from swiftmask.evaluate.scorers import Scorer
from swiftmask.evaluate.study import Measurement, Row, Sample

Point = TypeVar("Point")

VANILLA = "vanilla"
"""Series of the unaccelerated model."""

COST_TOLERANCE = 0.005
"""Costs this near each other count as the same: half the steps cost a hair more than half."""

_SAMPLING = ("unguided", "temperature-", "power-", "denoising", "ancestral", "ddim", "disa")
"""How parts of a series begin that change how the model samples, and accelerate nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSummary:
    """One line of the table; costs are per image, of the token decode.

    Attributes:
        values: by the key of a quantity.
        equal_cost: by the key of a compared quantity: what the full model (or `baseline_of` the series)
            with as many steps as this row's GFLOP would pay for gives, interpolated along the logarithm of
            the cost; empty for vanilla rows and outside its range.
    """

    name: str
    series: str
    steps: int
    full_steps: int
    calls: dict[str, int]
    gflop: float
    ms: float
    peak_memory_bytes: int
    values: dict[str, Spread]
    equal_cost: dict[str, float]

    @property
    def accelerated(self) -> bool:
        """Whether other weights, a shortcut or a cache are part of it."""
        parts = self.series.split("+")
        return self.series != VANILLA and not all(part.startswith(_SAMPLING) for part in parts)

    @property
    def resampled(self) -> bool:
        """Whether it is the full model with other sampling: no guidance, another temperature and so on."""
        return self.series != VANILLA and not self.accelerated


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which model was measured, when, where, with what."""

    model: str
    commit: str
    date: str
    machine: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole study, as it is published.

    Attributes:
        N: images per row and evaluation seed, which is also what distances and floors compare.
        quantities: the first is the one conclusions are drawn from.
        floors: of real images against other real ones, by the key of a quantity.
        notes: what a reader must know of the scorers.
    """

    model: str
    commit: str
    date: str
    machine: str
    command: str
    N: int
    seeds: int
    batch_size: int
    quantities: list[Quantity]
    floors: dict[str, Spread]
    notes: list[str]
    rows: list[RowSummary]

    @property
    def full(self) -> RowSummary | None:
        """The unaccelerated model at its most steps."""
        vanilla = [row for row in self.rows if row.series == VANILLA]
        return max(vanilla, key=lambda row: row.steps, default=None)

    def best(self, rows: Sequence[RowSummary]) -> RowSummary | None:
        """The one of best quality, the cheaper of equal ones."""
        quantity = self.quantities[0]
        sign = -1 if quantity.higher_is_better else 1
        return min(rows, key=lambda row: (sign * row.values[quantity.key].mean, row.gflop), default=None)

    def picked(self) -> RowSummary | None:
        """The accelerated row to look at first: the best at half the full model's cost, or the cheapest."""
        others = [row for row in self.rows if row.series != VANILLA]
        fast = [row for row in others if row.accelerated] or others
        full = self.full
        affordable = fast if full is None else [row for row in fast if costs_half(row, full)]
        return self.best(affordable) or min(fast, key=lambda row: row.gflop, default=None)

    def command_of(self, row: RowSummary) -> str:
        """What measures one row again: `bench` can do it alone, a demo is made as a whole."""
        if not self.command.startswith("swiftmask bench"):
            return self.command
        name = f"'{row.name}'" if " " in row.name else row.name
        return f"{self.command} --only {name}"


def costs_half(row: RowSummary, full: RowSummary) -> bool:
    """Half or less; half the steps count, though a head that is not quite the same each step is in them."""
    return row.gflop <= 1.01 * full.gflop / 2


def summarise(
    rows: Sequence[Row],
    measurements: Sequence[Measurement],
    sample: Sample,
    origin: Origin,
    scorers: Sequence[Scorer],
) -> Report:
    """Means and spreads of what `Study.measure` returned. Quantities that no row has are left out."""
    by_row = {row.name: [m for m in measurements if m.row == row.name] for row in rows}
    spreads = {name: _spreads([m.values for m in own]) for name, own in by_row.items()}
    known = {key for values in spreads.values() for key in values}
    quantities = [q for scorer in scorers for q in scorer.quantities if q.key in known]
    compared = [quantity.key for quantity in quantities if quantity.compared]
    curves: dict[str, list[tuple[float, dict[str, Spread]]]] = {}
    for row in sorted(rows, key=lambda row: row.flops):
        curves.setdefault(row.series, []).append((row.flops, spreads[row.name]))
    return Report(
        **asdict(origin),
        N=sample.num_images,
        seeds=sample.num_seeds,
        batch_size=sample.batch_size,
        quantities=quantities,
        floors=_spreads([m.floors for m in {m.seed: m for m in measurements}.values()]),
        notes=[scorer.note for scorer in scorers],
        rows=[
            RowSummary(
                name=row.name,
                series=row.series,
                steps=row.steps,
                full_steps=row.full_steps,
                calls=row.calls,
                gflop=row.flops / 1e9,
                ms=median(m.ms for m in by_row[row.name]),
                peak_memory_bytes=max(m.peak_memory_bytes for m in by_row[row.name]),
                values=spreads[row.name],
                equal_cost=_at_equal_cost(row, baseline_of(row.series, curves), compared),
            )
            for row in rows
        ],
    )


def _spreads(found: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Of what every seed has; a few images may state no relation."""
    return {key: Spread.of([one[key] for one in found]) for key in found[0] if all(key in o for o in found)}


def _at_equal_cost(
    row: Row, curve: Sequence[tuple[float, dict[str, Spread]]], keys: Sequence[str]
) -> dict[str, float]:
    found = {
        key: at_cost(row.flops, [(flops, values[key].mean) for flops, values in curve if key in values])
        for key in keys
    }
    return {key: value for key, value in found.items() if value is not None}


def baseline_of(series: str, curves: Mapping[str, Sequence[Point]]) -> Sequence[Point]:
    """The curve that rows of a series must beat at their cost: that of the same without what was added last
    ("unguided" for "unguided+shortcut") if there is one, or "vanilla"; empty for "vanilla" itself.
    """
    if series == VANILLA:
        return []
    parts = series.split("+")
    shorter = ("+".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    return curves.get(next((name for name in shorter if name in curves), VANILLA), [])


def at_cost(flops: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """The value at `flops` of a curve of (flops, value), cheapest first; None outside it, by more than
    `COST_TOLERANCE`, and for a curve of one point.
    """
    if not curve:
        return None
    nearest = min(max(flops, curve[0][0]), curve[-1][0])
    if not math.isclose(flops, nearest, rel_tol=COST_TOLERANCE):
        return None
    for (low, before), (high, after) in zip(curve, curve[1:], strict=False):
        if low <= nearest <= high:
            share = math.log(nearest / low) / math.log(high / low) if high > low else 0.0
            return before + share * (after - before)
    return None


def write_report(report: Report, path: Path) -> None:
    """The report as JSON, whole or not at all."""
    write_text(path, json.dumps(asdict(report), indent=2) + "\n")


def read_report(path: Path) -> Report:
    """A written report. Errors: FileNotFoundError; ValueError if it is something else."""
    return record_of(Report, read_json(path, expected="expected a report"), source=str(path))


def mean_of(measurements: Sequence[Measurement], key: str) -> float:
    return fmean(m.values[key] for m in measurements)
