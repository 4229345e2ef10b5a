"""The table of a study on any model (folder_study.py): what is published, and its text."""

from dataclasses import dataclass, field

from swiftmask.evaluate.extractors import Identity
from swiftmask.evaluate.summary import Spread

_LOWER_IS_BETTER = ("fd", "fid", "kid")
_SHOWN_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderRow:
    """One line of the table.

    Attributes:
        metrics: by name, over evaluation seeds.
        equal_cost: the first metric of the full model with as many steps as this row's GFLOP would pay for;
            None for its own rows and outside its range.
    """

    name: str
    series: str
    steps: int
    full_steps: int
    calls: dict[str, int]
    gflop_per_picture: float
    ms_per_picture: float
    peak_memory_bytes: int
    metrics: dict[str, Spread]
    equal_cost: float | None
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderReport:
    """A whole study, as it is published.

    Attributes:
        N: pictures per row and evaluation seed.
        reference, reference_pictures: what was compared with, and how many (None where a file of statistics
            does not say).
        metrics: their names, the leading one first.
        floors: the same between real pictures and other real ones, where there are enough.
        floor_pictures: how many stood in the place of the generated ones; 0 if there is no floor.
        converted: of how many real pictures something was converted, by what it was (data/images/decode.py).
    """

    model: str
    commit: str
    date: str
    machine: str
    N: int
    seeds: int
    batch_size: int
    reference: str
    reference_pictures: int | None
    extractor: Identity
    metrics: tuple[str, ...]
    floors: dict[str, float]
    floor_pictures: int
    command: str
    rows: list[FolderRow]
    converted: dict[str, int] = field(default_factory=dict)


def higher_is_better(metric: str) -> bool:
    """Of a metric by its name ("fd_scenes", "FID", "precision_dinov2-base")."""
    return metric.split("_")[0].lower() not in _LOWER_IS_BETTER


def folder_headings(report: FolderReport) -> tuple[str, ...]:
    """Of the columns of `folder_table`."""
    metrics = [f"{name} {'↑' if higher_is_better(name) else '↓'}" for name in report.metrics]
    return ("row", *metrics, "same cost, fewer steps", "full calls", "GFLOP", "ms", "peak MB")


def folder_table(report: FolderReport) -> list[tuple[str, ...]]:
    """The report's rows as text."""
    return [_cells(row, report) for row in report.rows]


def _cells(row: FolderRow, report: FolderReport) -> tuple[str, ...]:
    metrics = (row.metrics[name] for name in report.metrics)
    return (
        row.name,
        *(spread.text(3) if report.seeds > 1 else f"{spread.mean:.3f}" for spread in metrics),
        "" if row.equal_cost is None else f"{row.equal_cost:.3f}",
        str(row.calls["backbone"]),
        f"{row.gflop_per_picture:.2f}",
        f"{row.ms_per_picture:.1f}",
        f"{row.peak_memory_bytes / 1e6:.0f}",
    )


def folder_caption(report: FolderReport) -> str:
    """What a reader must know beside the table."""
    seeds = "1 seed" if report.seeds == 1 else f"{report.seeds} seeds (mean ± standard deviation)"
    known = report.reference_pictures
    real = f"{'an unknown number of' if known is None else known} real images ({report.reference})"
    return (
        f"N = {report.N} images per row and evaluation seed, {seeds}, against {real}; {_floor(report)}. "
        f"Features: {report.extractor.name}, sha256 {report.extractor.sha256[:_SHOWN_DIGITS]}; most of these "
        "metrics depend on N, so compare equal N only. GFLOP and ms are per image, token decode only, "
        f"batch {report.batch_size}. Same cost, fewer steps: {report.metrics[0]} of the full model with as "
        "many steps as this row's GFLOP pay for; in a row A+B, of A. "
        f"{report.model}, {report.machine}, commit {report.commit}, {report.date}."
    )


def _floor(report: FolderReport) -> str:
    if not report.floors:
        return "no floor, which needs enough images of the reference"
    values = ", ".join(f"{name} {value:.3g}" for name, value in report.floors.items())
    return f"floor, {report.floor_pictures} real images against the others: {values}"
