"""What a study found: means and spreads over evaluation seeds, and what fewer steps at equal cost give."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import TypeVar

from swiftmask.core.settings import read_json, record_of
from swiftmask.core.writing import write_text
from swiftmask.evaluate.quality import Measurement, Row, Sample

Point = TypeVar("Point")

COST_TOLERANCE = 0.005
"""Costs this near each other count as the same: half the steps cost a hair more than half."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation over evaluation seeds (0 for a single one)."""

    mean: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(fmean(values), stdev(values) if len(values) > 1 else 0.0)

    def text(self, digits: int) -> str:
        return f"{self.mean:.{digits}f} ± {self.spread:.{digits}f}"


def score_noise(one: float, other: float, num_pictures: int) -> float:
    """Two standard errors of the difference of two judge scores, each a share over as many images.

    An upper bound: the facts of an image are taken to be right or wrong together.
    """
    return 2 * math.sqrt((one * (1 - one) + other * (1 - other)) / num_pictures)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSummary:
    """One line of the table.

    Attributes:
        equal_cost_score, equal_cost_fd_scenes: of the full model (or `rival_of` its series) with as many
            steps as this row's GFLOP would pay for (interpolated along the logarithm of the cost); None for
            vanilla rows and outside its range.
        training_reward: score by the reader that training may use; None for classes.
        diversity: within a prompt; None for classes.
        by_kind: share of the stated facts of each kind that the judge finds; None if that was not measured.
    """

    name: str
    series: str
    steps: int
    full_steps: int
    calls: dict[str, int]
    gflop_per_picture: float
    score: Spread
    fd_scenes: Spread
    agreement: Spread | None
    ms_per_picture: float
    peak_memory_bytes: int
    equal_cost_score: float | None
    equal_cost_fd_scenes: float | None
    command: str
    training_reward: Spread | None = None
    diversity: Spread | None = None
    by_kind: dict[str, Spread] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """A whole study, as it is published.

    Attributes:
        commit, date: when it was measured; all there are if it took several.
        N: pictures per row and evaluation seed, which is also what `floor` and every `fd_scenes` compare.
        floor: `fd_scenes` of real pictures to other real ones.
    """

    model: str
    commit: str
    date: str
    machine: str
    N: int
    seeds: int
    batch_size: int
    floor: Spread
    command: str
    rows: list[RowSummary]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which model was measured, when, where, with what."""

    model: str
    commit: str
    date: str
    machine: str
    command: str


def summarise(
    rows: Sequence[Row], measurements: Sequence[Measurement], sample: Sample, origin: Origin
) -> QualityReport:
    """Means and spreads of what `run_study` returned.

    Args:
        origin: its commit and date are for measurements that do not say theirs.
    """
    by_row = {row.name: [m for m in measurements if m.row == row.name] for row in rows}
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for row in sorted(rows, key=lambda row: row.flops):
        own = by_row[row.name]
        point = (row.flops, fmean(m.score for m in own), fmean(m.fd_scenes for m in own))
        curves.setdefault(row.series, []).append(point)
    floors = {m.seed: m.floor for m in measurements}
    commits, dates = ([getattr(m, fact) or getattr(origin, fact) for m in measurements] for fact in _WHEN)
    origin = replace(origin, commit=_each(commits), date=_each(dates))
    return QualityReport(
        **asdict(origin),
        N=sample.num_pictures,
        seeds=sample.num_seeds,
        batch_size=sample.batch_size,
        floor=Spread.of(list(floors.values())),
        rows=[_summarise_row(row, by_row[row.name], rival_of(row.series, curves)) for row in rows],
    )


_WHEN = ("commit", "date")


def _each(values: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _summarise_row(
    row: Row, own: Sequence[Measurement], curve: Sequence[tuple[float, float, float]]
) -> RowSummary:
    agreements = [m.agreement for m in own if m.agreement is not None]
    return RowSummary(
        name=row.name,
        series=row.series,
        steps=row.steps,
        full_steps=row.full_steps,
        calls=row.calls,
        gflop_per_picture=row.flops / 1e9,
        score=Spread.of([m.score for m in own]),
        fd_scenes=Spread.of([m.fd_scenes for m in own]),
        agreement=Spread.of(agreements) if agreements else None,
        ms_per_picture=median(m.ms_per_picture for m in own),
        peak_memory_bytes=max(m.peak_memory_bytes for m in own),
        equal_cost_score=at_cost(row.flops, [(flops, score) for flops, score, _ in curve]),
        equal_cost_fd_scenes=at_cost(row.flops, [(flops, distance) for flops, _, distance in curve]),
        command=row.command,
        training_reward=_spread_if_known([m.training_reward for m in own]),
        diversity=_spread_if_known([m.diversity for m in own]),
        by_kind=_by_kind(own),
    )


def _by_kind(own: Sequence[Measurement]) -> dict[str, Spread] | None:
    """Of the kinds that every seed states; a few pictures may state no relation."""
    found = [m.by_kind for m in own if m.by_kind is not None]
    if len(found) < len(own):
        return None
    return {k: Spread.of([m[k] for m in found]) for k in found[0] if all(k in m for m in found)}


def _spread_if_known(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread.of(known) if known else None


def rival_of(series: str, curves: Mapping[str, Sequence[Point]]) -> Sequence[Point]:
    """The curve that rows of a series must beat at their cost: that of the same without what was added last
    ("unguided" for "unguided+shortcut") if there is one, or "vanilla"; empty for "vanilla" itself.
    """
    if series == "vanilla":
        return []
    parts = series.split("+")
    shorter = ("+".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    return curves.get(next((name for name in shorter if name in curves), "vanilla"), [])


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


def write_report(report: QualityReport, path: Path) -> None:
    """The report as JSON, whole or not at all."""
    write_text(path, json.dumps(asdict(report), indent=2) + "\n")


def read_report(path: Path) -> QualityReport:
    """A written report. Errors: FileNotFoundError; ValueError if it is something else."""
    return record_of(QualityReport, read_json(path, expected="expected a quality report"), source=str(path))
