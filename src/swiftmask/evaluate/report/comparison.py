"""A measured study as one table: what the page and the model card show, however quality was measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swiftmask.evaluate.quality_table import FactTable, caption, fact_table, headings, markdown_table, table
from swiftmask.evaluate.report.folder_table import (
    FolderReport,
    folder_caption,
    folder_headings,
    folder_table,
    higher_is_better,
)
from swiftmask.evaluate.summary import QualityReport, Spread

VANILLA = "vanilla"
"""Series of the unaccelerated model."""

_SAMPLING = ("unguided", "temperature-", "power-", "denoising", "ancestral", "ddim", "disa")
"""How parts of a series begin that change how the model samples, and accelerate nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One measure of quality.

    Attributes:
        floor: its value between real pictures and other real ones, if known.
    """

    key: str
    label: str
    higher_is_better: bool
    floor: float | None = None

    def better(self, value: float, other: float) -> bool:
        return value > other if self.higher_is_better else value < other


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One row: cost per picture and quality by the key of a quantity.

    Attributes:
        equal_cost: the first quantity of the full model with as many steps as cost the same, if measured
            about there.
    """

    name: str
    series: str
    steps: int
    full_steps: int
    gflop: float
    ms: float
    values: dict[str, Spread]
    equal_cost: float | None
    command: str

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
class Comparison:
    """A whole table.

    Attributes:
        command: what measures all of it again.
        seeds: evaluation seeds.
        caption: what a reader must know beside the numbers.
        cells: the rows as text, under `headings`.
        quantities: the first is the one conclusions are drawn from.
        facts: the rows again, by kind of fact, if that was measured.
    """

    model: str
    command: str
    seeds: int
    caption: str
    headings: tuple[str, ...]
    cells: list[tuple[str, ...]]
    quantities: tuple[Quantity, ...]
    points: tuple[Point, ...]
    facts: FactTable | None = None

    @property
    def full(self) -> Point | None:
        """The unaccelerated model at its most steps."""
        vanilla = [point for point in self.points if point.series == VANILLA]
        return max(vanilla, key=lambda point: point.steps, default=None)

    def best(self, points: Sequence[Point]) -> Point | None:
        """The one of best quality, the cheaper of equal ones."""
        quantity = self.quantities[0]
        sign = -1 if quantity.higher_is_better else 1
        return min(points, key=lambda p: (sign * p.values[quantity.key].mean, p.gflop), default=None)

    def picked(self) -> Point | None:
        """The accelerated row to look at first: the best at half the full model's cost, or the cheapest."""
        others = [point for point in self.points if point.series != VANILLA]
        fast = [point for point in others if point.accelerated] or others
        full = self.full
        affordable = fast if full is None else [point for point in fast if _costs_half(point, full)]
        return self.best(affordable) or min(fast, key=lambda point: point.gflop, default=None)


def comparison_of(report: QualityReport | FolderReport) -> Comparison:
    """The table of a study."""
    return _of_folder(report) if isinstance(report, FolderReport) else _of_scenes(report)


def _of_scenes(report: QualityReport) -> Comparison:
    points = [
        Point(
            name=row.name,
            series=row.series,
            steps=row.steps,
            full_steps=row.full_steps,
            gflop=row.gflop_per_picture,
            ms=row.ms_per_picture,
            values={"score": row.score, "fd_scenes": row.fd_scenes}
            | ({} if row.diversity is None else {"diversity": row.diversity}),
            equal_cost=row.equal_cost_score,
            command=row.command,
        )
        for row in report.rows
    ]
    score = Quantity(key="score", label="judge score", higher_is_better=True)
    diversity = Quantity(key="diversity", label="diversity", higher_is_better=True)
    varied = all(row.diversity is not None for row in report.rows)
    distance = Quantity(key="fd_scenes", label="fd_scenes", higher_is_better=False, floor=report.floor.mean)
    return Comparison(
        model=report.model,
        command=report.command,
        seeds=report.seeds,
        caption=caption(report),
        headings=headings(report),
        cells=table(report),
        quantities=(score, distance, *([diversity] if varied else [])),
        points=tuple(points),
        facts=fact_table(report),
    )


def _of_folder(report: FolderReport) -> Comparison:
    points = [
        Point(
            name=row.name,
            series=row.series,
            steps=row.steps,
            full_steps=row.full_steps,
            gflop=row.gflop_per_picture,
            ms=row.ms_per_picture,
            values=row.metrics,
            equal_cost=row.equal_cost,
            command=row.command,
        )
        for row in report.rows
    ]
    quantities = [
        Quantity(
            key=name,
            label=name,
            higher_is_better=higher_is_better(name),
            floor=report.floors.get(name),
        )
        for name in report.metrics
    ]
    return Comparison(
        model=report.model,
        command=report.command,
        seeds=report.seeds,
        caption=folder_caption(report),
        headings=folder_headings(report),
        cells=folder_table(report),
        quantities=tuple(quantities),
        points=tuple(points),
    )


def findings(comparison: Comparison) -> str:
    """What the table says about half the cost of the full model, in two or three sentences."""
    full, quantity = comparison.full, comparison.quantities[0]
    if full is None:
        return f"{len(comparison.points)} rows of {comparison.model}, without the full model."
    text = (
        f"The full model with {full.steps} steps costs {full.gflop:.3g} GFLOP per image; its "
        f"{quantity.label} is {_value(full, quantity)}. "
    )
    affordable = [point for point in comparison.points if _costs_half(point, full)]
    fast = comparison.best([point for point in affordable if point.accelerated])
    other = comparison.best([point for point in affordable if point.resampled])
    sentences = [
        text + ("No accelerated row costs half of that or less." if fast is None else ""),
        *([] if fast is None else _accelerated(fast, full, comparison)),
        *([] if other is None else [_resampled(other, fast, comparison)]),
    ]
    return " ".join(sentence.strip() for sentence in sentences)


def _accelerated(fast: Point, full: Point, comparison: Comparison) -> list[str]:
    """The best accelerated row, beside what fewer steps alone give."""
    quantity = comparison.quantities[0]
    affordable = [point for point in comparison.points if _costs_half(point, full)]
    fewer = comparison.best([point for point in affordable if point.series == VANILLA])
    text = (
        f"At half that cost or less, the best accelerated row is {fast.name} with "
        f"{_value(fast, quantity)} at {fast.gflop:.3g} GFLOP ({full.gflop / fast.gflop:.1f} times fewer)"
    )
    if fast.ms > 0.94 * full.ms:
        text += f", but no faster on this machine ({fast.ms:.3g} ms against {full.ms:.3g} ms)"
    if fewer is None:
        return [text + "; no row of fewer steps alone is as cheap."]
    verdict = _verdict(fast, fewer, comparison)
    text += f"; {verdict} the best of fewer steps alone, {fewer.name} with {_value(fewer, quantity)}."
    if fast.equal_cost is None:
        return [text]
    return [
        text,
        f"Fewer steps alone at the cost of {fast.name} would have {fast.equal_cost:.3g} (interpolated).",
    ]


def _resampled(other: Point, fast: Point | None, comparison: Comparison) -> str:
    """The best row of the full model with other sampling, which costs no training."""
    text = (
        f"With other sampling alone, {other.name} has {_value(other, comparison.quantities[0])} at "
        f"{other.gflop:.3g} GFLOP"
    )
    if fast is None:
        return f"{text}."
    return f"{text}; {_verdict(other, fast, comparison)} {fast.name}."


def model_card(comparison: Comparison) -> str:
    """The section "quality and cost" of a model card, in Markdown."""
    found = f"## Quality and cost of {comparison.model}\n\n{findings(comparison)}\n\n"
    return found + markdown_table(
        comparison.headings,
        comparison.cells,
        caption=comparison.caption,
        more="" if comparison.facts is None else comparison.facts.markdown(),
        command=comparison.command,
        commands=[(point.name, point.command) for point in comparison.points],
    )


def _costs_half(point: Point, full: Point) -> bool:
    """Half or less; half the steps count, though a head that is not quite the same each step is in them."""
    return point.gflop <= 1.01 * full.gflop / 2


def _verdict(fast: Point, fewer: Point, comparison: Comparison) -> str:
    """A difference within the larger spread is none; one evaluation seed has no spread, and shows none."""
    quantity = comparison.quantities[0]
    ours, theirs = fast.values[quantity.key], fewer.values[quantity.key]
    if comparison.seeds == 1:
        return "no difference that one evaluation seed can show from"
    if abs(ours.mean - theirs.mean) <= max(ours.spread, theirs.spread):
        return "no difference beyond the spread from"
    return "it beats" if quantity.better(ours.mean, theirs.mean) else "it does not beat"


def _value(point: Point, quantity: Quantity) -> str:
    found = point.values[quantity.key]
    if not found.spread or not found.mean:
        return f"{found.mean:.3g}"
    return found.text(max(0, 2 - math.floor(math.log10(abs(found.mean)))))
