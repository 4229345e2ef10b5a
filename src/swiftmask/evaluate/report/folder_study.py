"""Rows of a study on any model: their pictures against real ones, in the features of any extractor.

The pictures of a row are drawn into the extractor, never kept; only features are, 256 pictures a file
(feature_store.py), so a killed run continues where it was. Seeds pair the rows as in quality.py: picture `i`
of evaluation seed `s` has the same image seed in every row.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from swiftmask.core.settings import read_json, record_of
from swiftmask.core.writing import write_text
from swiftmask.evaluate.extractors import Extractor
from swiftmask.evaluate.feature_store import FeatureStore, describe
from swiftmask.evaluate.folder_metrics import (
    FolderMetrics,
    MetricSettings,
    compare_with_moments,
    compare_with_pictures,
)
from swiftmask.evaluate.memory import peak_memory_bytes, reset_peak_memory
from swiftmask.evaluate.pictures import Pictures
from swiftmask.evaluate.processes import ALONE, Processes
from swiftmask.evaluate.quality import Row, Sample, picture_seeds
from swiftmask.evaluate.report.folder_table import FolderReport, FolderRow
from swiftmask.evaluate.statistics import Moments
from swiftmask.evaluate.summary import Origin, Spread, at_cost, rival_of

OnProgress = Callable[[str, int], None]
"""`on_progress(row name, pictures)`, as in study.py."""

_DIGITS = 16
"""Of a fingerprint, in the name of a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What the rows are compared with, and in whose features.

    Attributes:
        name: where it came from.
        real: features of real pictures, or their mean and covariance.
    """

    name: str
    real: FeatureStore | Moments
    extractor: Extractor
    settings: MetricSettings = MetricSettings()

    def changes(self) -> dict[str, int]:
        """Of how many real pictures something was converted (data/images/decode.py)."""
        return {} if isinstance(self.real, Moments) else self.real.changes()

    def metrics_of(self, generated: FeatureStore) -> FolderMetrics:
        if isinstance(self.real, Moments):
            return compare_with_moments(generated, self.real, self.settings)
        return compare_with_pictures(generated, self.real, self.settings)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is drawn, in turn.

    Attributes:
        entries: class labels or prompts.
        first_seeds: of each entry's first picture, where one is asked for; those of its next ones follow.
            Empty, or one for each entry.
    """

    entries: Sequence[Any]
    first_seeds: Sequence[int | None] = ()

    def what(self, count: int) -> list[Any]:
        """Of `count` pictures."""
        return [self.entries[index % len(self.entries)] for index in range(count)]

    def seeds(self, seed: int, count: int) -> list[int]:
        """Of `count` pictures under one evaluation seed: those of quality.py, where none is asked for."""
        seeds = picture_seeds(seed, count)
        asked = list(seeds)
        for index in range(count) if self.first_seeds else ():
            turn, place = divmod(index, len(self.entries))
            if (first := self.first_seeds[place]) is not None:
                asked[index] = seeds[0] + first + turn
        return asked


@dataclass(frozen=True, slots=True)
class _Described:
    """The pictures of one row under one evaluation seed, as an extractor sees them."""

    store: FeatureStore
    cost: Path


@dataclass(frozen=True, slots=True)
class _Found:
    """One row under one evaluation seed."""

    ms_per_picture: float
    peak_memory_bytes: int
    metrics: FolderMetrics


@dataclass
class _Drawing:
    """A row's pictures of one evaluation seed by index, and what drawing them took."""

    row: Row
    asked: Sequence[Any]
    seeds: Sequence[int]
    on_pictures: Callable[[int], None]
    ms: list[float] = field(default_factory=list)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        drawn = self.row.draw([self.asked[i] for i in indices], [self.seeds[i] for i in indices])
        self.ms.append(1000 * drawn.seconds / len(indices))
        self.on_pictures(len(indices))
        return drawn.images_B3HW.float()


def run_folder_study(
    rows: Sequence[Row],
    sample: Sample,
    reference: Reference,
    folder: Path,
    *,
    requests: Asked,
    origin: Origin,
    on_progress: OnProgress = lambda row, count: None,
    processes: Processes = ALONE,
) -> FolderReport | None:
    """Draw and describe what is missing below `folder`, then compare; seeds are the outer loop, as in
    study.py.

    Args:
        requests: what is drawn.
        processes: that call this with the same rows and folder; they divide the pictures of a row by index.
            The first one compares, and the others return None.

    Errors: ValueError for an extractor that refuses the pictures, or too few of them for a metric.
    """
    described: dict[str, list[_Described]] = {row.name: [] for row in rows}
    asked = requests.what(sample.num_pictures)
    for seed in range(sample.num_seeds):
        for row in rows:
            seeds = requests.seeds(seed, sample.num_pictures)
            drawing = _Drawing(row, asked, seeds, lambda count, name=row.name: on_progress(name, count))
            described[row.name].append(_describe(drawing, sample, reference.extractor, folder, processes))
    processes.wait()
    if processes.rank != 0:
        return None
    found = {
        name: [_Found(*_read_cost(one.cost), reference.metrics_of(one.store)) for one in seeds]
        for name, seeds in described.items()
    }
    return _summarised(rows, found, sample, reference, origin)


def _describe(
    drawing: _Drawing,
    sample: Sample,
    extractor: Extractor,
    folder: Path,
    processes: Processes,
) -> _Described:
    """This process's share of the pictures, and the first one's cost."""
    row = drawing.row
    drawn = repr((row.fingerprint, list(drawing.asked), list(drawing.seeds)))
    pictures = Pictures(sample.num_pictures, sha256(drawn.encode()).hexdigest(), drawing)
    own = folder / f"{row.name.replace(':', '-')}-{pictures.fingerprint[:_DIGITS]}"
    reset_peak_memory(row.device)
    store = describe(
        pictures,
        extractor,
        own,
        batch_size=sample.batch_size,
        rank=processes.rank,
        num_ranks=processes.count,
        on_progress=_resumed(drawing.on_pictures),
    )
    described = _Described(store, own / "cost.json")
    if processes.rank == 0:
        _keep_cost(drawing, described.cost, sample.batch_size)
    return described


def _resumed(on_pictures: Callable[[int], None]) -> Callable[[int, int], None]:
    """Reports what was described before this run; the drawing reports the rest as it goes."""
    calls: list[int] = []

    def on_progress(done: int, total: int) -> None:
        if not calls and done:
            on_pictures(done)
        calls.append(done)

    return on_progress


@dataclass(frozen=True, slots=True)
class _Cost:
    ms_per_picture: float
    peak_memory_bytes: int


def _keep_cost(drawing: _Drawing, path: Path, batch_size: int) -> None:
    """Milliseconds a picture and peak memory, beside the features: a finished row is not drawn again."""
    if not drawing.ms and path.exists():
        return
    if not drawing.ms:  # killed between the last features and this file
        drawing.on_pictures = lambda count: None
        drawing(range(min(batch_size, len(drawing.asked))))
    cost = _Cost(median(drawing.ms), peak_memory_bytes(drawing.row.device))
    write_text(path, json.dumps(asdict(cost)) + "\n")


def _read_cost(path: Path) -> tuple[float, int]:
    try:
        kept = record_of(_Cost, read_json(path), source=str(path))
    except ValueError as error:
        raise ValueError(f"{error}: remove it and run again") from error
    return kept.ms_per_picture, kept.peak_memory_bytes


def _summarised(
    rows: Sequence[Row],
    found: dict[str, list[_Found]],
    sample: Sample,
    reference: Reference,
    origin: Origin,
) -> FolderReport:
    one = found[rows[0].name][0].metrics
    names = tuple(metric.name for metric in one.metrics)
    spreads = {row.name: _spreads(found[row.name]) for row in rows}
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(rows, key=lambda row: row.flops):
        curves.setdefault(row.series, []).append((float(row.flops), spreads[row.name][names[0]].mean))
    return FolderReport(
        **asdict(origin),
        N=sample.num_pictures,
        seeds=sample.num_seeds,
        batch_size=sample.batch_size,
        reference=reference.name,
        reference_pictures=one.reference_pictures,
        extractor=reference.extractor.identity,
        metrics=names,
        floors={metric.name: metric.floor for metric in one.metrics if metric.floor is not None},
        floor_pictures=one.floor_pictures,
        converted=reference.changes(),
        rows=[
            _summarised_row(row, found[row.name], spreads[row.name], rival_of(row.series, curves))
            for row in rows
        ],
    )


def _spreads(found: Sequence[_Found]) -> dict[str, Spread]:
    """Every metric over the evaluation seeds."""
    per_seed = [{metric.name: metric.value for metric in one.metrics.metrics} for one in found]
    return {name: Spread.of([values[name] for values in per_seed]) for name in per_seed[0]}


def _summarised_row(
    row: Row, found: Sequence[_Found], metrics: dict[str, Spread], curve: Sequence[tuple[float, float]]
) -> FolderRow:
    return FolderRow(
        name=row.name,
        series=row.series,
        steps=row.steps,
        full_steps=row.full_steps,
        calls=row.calls,
        gflop_per_picture=row.flops / 1e9,
        ms_per_picture=median(one.ms_per_picture for one in found),
        peak_memory_bytes=max(one.peak_memory_bytes for one in found),
        metrics=metrics,
        equal_cost=at_cost(row.flops, curve),
        command=row.command,
    )
