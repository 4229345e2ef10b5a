"""A study: rows of a table, each a way to generate, measured by any number of scorers.

Images are generated into the scorers and not kept; only their readings are, 256 images a file
(feature_store.py). A killed run continues with the files that are missing. Processes share the files of all
rows. A row of other weights or another schedule has files of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import torch

from swiftmask.evaluate.feature_store import FeatureStore, Readings, joined
from swiftmask.evaluate.memory import peak_memory_bytes, reset_peak_memory
from swiftmask.evaluate.presets import Settings
from swiftmask.evaluate.processes import ALONE, Processes
from swiftmask.evaluate.requests import Requests, in_batches
from swiftmask.evaluate.scorers import Generated, Images, Scorer

OnProgress = Callable[[str, int], None]
"""`on_progress(row name, images)`: called for every batch generated and for every part found done."""

_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to generate, and what it costs.

    Attributes:
        name: unique, for example "shortcut-16:4".
        series: rows of one method share it ("vanilla", "shortcut", "reuse", ...).
        full_steps: how many of `steps` run the backbone.
        flops: operations of the token decode of one image.
        fingerprint: of weights and schedule.
        generate: `generate(asked, seeds)`: one image per class or prompt, and image seed.
        reference: the row of the full model with the same steps, which images of the same seeds are compared
            with; None without one.
        settings: that it generates with.
        placement: of the full steps that the settings list; the name says it, too.
    """

    name: str
    series: str
    steps: int
    full_steps: int
    calls: dict[str, int]
    flops: int
    fingerprint: str
    generate: Callable[[Any, list[int]], Generated]
    device: torch.device = torch.device("cpu")
    reference: str | None = None
    settings: Settings = Settings()
    placement: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How much is generated: `num_images` for each evaluation seed, `batch_size` at a time.

    Attributes:
        first_seed: of `num_seeds` evaluation seeds.
    """

    num_images: int = 700
    num_seeds: int = 3
    batch_size: int = 100
    first_seed: int = 0

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise ValueError(f"quality needs at least 2 images per seed, got {self.num_images}")
        if self.num_seeds < 1 or self.batch_size < 1:
            raise ValueError(
                f"at least 1 seed, a batch of at least 1: got {self.num_seeds} and {self.batch_size}"
            )

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.num_seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One row under one evaluation seed: values by the key of a quantity.

    Attributes:
        ms: milliseconds an image of the token decode, median over batches.
    """

    row: str
    seed: int
    num_images: int
    values: dict[str, float]
    floors: dict[str, float]
    ms: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True)
class _Part:
    """The images of one row under one evaluation seed, and where their readings lie."""

    row: Row
    seed: int
    num_images: int
    asked: list[Any]
    seeds: list[int]
    stores: tuple[FeatureStore, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What is generated, and by what it is measured.

    Attributes:
        folder: of the readings.
        processes: that call `measure` with the same rows; each generates a share.
    """

    requests: Requests
    scorers: tuple[Scorer, ...]
    folder: Path
    processes: Processes = ALONE
    _known: dict[object, Measurement] = field(default_factory=dict, repr=False)

    def measure(
        self, rows: Sequence[Row], sample: Sample, on_progress: OnProgress = lambda row, count: None
    ) -> list[Measurement]:
        """Generate what is missing, seed by seed: what the machine does meanwhile hits all rows alike.

        Returns the measurements, seed by seed; of several processes the first one's only.

        Errors: ValueError for repeated names, or a reference that is no row.
        """
        parts = self._generated(rows, sample, on_progress)
        self.processes.wait()
        if self.processes.rank:
            return []
        by_row = {(part.row.name, part.seed): part for part in parts}
        return [self._measurement(part, by_row) for part in parts]

    def generate(self, rows: Sequence[Row], sample: Sample) -> None:
        """Generate and read what is missing of this process's share, without waiting for the others."""
        self._generated(rows, sample, lambda row, count: None)

    def _generated(self, rows: Sequence[Row], sample: Sample, on_progress: OnProgress) -> list[_Part]:
        _require_names(rows)
        parts = [self._part(row, seed, sample) for seed in sample.seeds for row in rows]
        for store in (store for part in parts for store in part.stores):
            store.begin()
        chunks = [(part, chunk) for part in parts for chunk in range(part.stores[0].num_chunks)]
        for part, chunk in self.processes.share(chunks):
            self._complete(part, chunk, sample.batch_size, on_progress)
        return parts

    def _part(self, row: Row, seed: int, sample: Sample) -> _Part:
        varied, varied_seeds = self.requests.varied(seed, sample.num_images)
        asked = [*self.requests.asked(seed, sample.num_images), *varied]
        seeds = [*self.requests.seeds(seed, sample.num_images), *varied_seeds]
        digest = sha256(repr((row.fingerprint, asked, seeds)).encode()).hexdigest()
        own = self.folder / f"{row.name.replace(':', '-').replace(' ', '-')}-{digest[:_DIGITS]}"
        stores = tuple(
            FeatureStore(own / _folder_name(scorer), scorer.identity, digest, len(asked))
            for scorer in self.scorers
        )
        return _Part(row, seed, sample.num_images, asked, seeds, stores)

    def _complete(self, part: _Part, chunk: int, batch_size: int, on_progress: OnProgress) -> None:
        """Generate a chunk for the scorers that have not read it."""
        row, indices = part.row, part.stores[0].indices(chunk)
        lacking = [
            (scorer, store)
            for scorer, store in zip(self.scorers, part.stores, strict=True)
            if store.lacks(chunk)
        ]
        if not lacking:
            on_progress(row.name, len(indices))
            return
        reset_peak_memory(row.device)
        ms: list[float] = []
        readings: list[list[Readings]] = [[] for _ in lacking]
        for batch in in_batches(indices, batch_size):
            asked = [part.asked[i] for i in batch]
            generated = row.generate(asked, [part.seeds[i] for i in batch])
            ms.append(1000 * generated.seconds / len(batch))
            for found, (scorer, _) in zip(readings, lacking, strict=True):
                found.append(scorer.read(generated, asked))
            on_progress(row.name, len(batch))
        facts = {"ms": ms, "memory": peak_memory_bytes(row.device)}
        for found, (_, store) in zip(readings, lacking, strict=True):
            store.write(chunk, joined(found), facts)

    def _measurement(self, part: _Part, by_row: dict[tuple[str, int], _Part]) -> Measurement:
        row, num_images = part.row, part.num_images
        reference = None if row.reference is None else by_row[row.reference, part.seed]
        compared_with = reference and reference.row.fingerprint
        key = (row.fingerprint, compared_with, part.seed, num_images)
        if key not in self._known:
            values: dict[str, float] = {}
            floors: dict[str, float] = {}
            for index, (scorer, store) in enumerate(zip(self.scorers, part.stores, strict=True)):
                every = store.readings()
                images = Images(
                    seed=part.seed,
                    own=_rows(every, slice(num_images)),
                    varied=_rows(every, slice(num_images, None)) if len(part.asked) > num_images else None,
                    reference=reference and _rows(reference.stores[index].readings(), slice(num_images)),
                )
                values |= scorer.values(images)
                floors |= scorer.floors(part.seed, num_images)
            facts = [part.stores[0].facts(chunk) for chunk in range(part.stores[0].num_chunks)]
            self._known[key] = Measurement(
                row=row.name,
                seed=part.seed,
                num_images=num_images,
                values=values,
                floors=floors,
                ms=median(ms for fact in facts for ms in _numbers(fact["ms"])),
                peak_memory_bytes=max(int(number) for f in facts for number in _numbers([f["memory"]])),
            )
        return replace(self._known[key], row=row.name)


def _folder_name(scorer: Scorer) -> str:
    return f"{scorer.identity.name}-{scorer.identity.sha256[:_DIGITS]}".rstrip("-")


def _numbers(found: Any) -> list[float]:
    return list(found)


def _rows(readings: Readings, which: slice) -> Readings:
    return {name: rows[which] for name, rows in readings.items()}


def _require_names(rows: Sequence[Row]) -> None:
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"row names must differ, got {', '.join(names)}")
    unknown = [row.reference for row in rows if row.reference is not None and row.reference not in names]
    if unknown:
        raise ValueError(f"no row is called {unknown[0]}: choose the reference among {', '.join(names)}")
