"""What is read from a set of images, on disk: resumable, and shared by any number of processes.

Every 256 images make one file of tensors with one row per image. A file depends on those images alone, so a
killed run continues with the files that are missing, and processes that divide them find the same numbers as
one process.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor

from swiftmask.core.sealed import read_sealed, sealed
from swiftmask.core.settings import parse_json, read_text
from swiftmask.core.writing import (
    missing_folders,
    remove_empty,
    remove_partials,
    write_text,
    written_whole,
)
from swiftmask.evaluate.extractors import Extractor, Identity, Readings
from swiftmask.evaluate.image_sets import ImageSet
from swiftmask.evaluate.statistics import FeatureStatistics, Moments

CHUNK = 256
"""Images per file."""


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Readings of one set of images in a folder, a file a chunk.

    Attributes:
        identity: of what reads them.
        fingerprint: of the images.
    """

    folder: Path
    identity: Identity
    fingerprint: str
    count: int

    @property
    def num_chunks(self) -> int:
        return -(-self.count // CHUNK)

    def indices(self, chunk: int) -> range:
        """Images of a chunk."""
        return range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.count))

    def lacks(self, chunk: int) -> bool:
        return not self._path(chunk).exists()

    def missing(self) -> list[int]:
        """Chunks not written yet."""
        return [chunk for chunk in range(self.num_chunks) if self.lacks(chunk)]

    def begin(self) -> None:
        """Claim the folder, and remove what killed processes were writing there.

        Errors: ValueError if it holds readings of other images or by another reader.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path, wanted = self.folder / "features.json", self._settings()
        with self._lock():
            remove_partials(self.folder)
            if not path.exists():
                write_text(path, wanted)
        if read_text(path, expected="expected features") != wanted:
            raise ValueError(
                f"{self.folder} holds features of other images, or of another extractor than "
                f"{self.identity.name}: remove it, or choose another folder"
            )

    def write(self, chunk: int, readings: Readings, facts: Mapping[str, object]) -> None:
        """One chunk, whole or not at all, with facts about it (JSON)."""
        _require_numbers(readings, self.indices(chunk))
        tensors = {name: tensor.contiguous() for name, tensor in readings.items()}
        with self._lock(), written_whole(self._path(chunk)) as partial:
            save_file(tensors, partial, sealed(tensors, {"facts": json.dumps(facts)}))

    def facts(self, chunk: int) -> dict[str, object]:
        """What was written beside a chunk. Errors: ValueError if it is damaged."""
        return self._unsealed(chunk)[1]

    def changes(self) -> dict[str, int]:
        """Of how many images something was converted, by what it was (data/images/decode.py)."""
        counts: Counter[str] = Counter()
        for chunk in range(self.num_chunks):
            counts.update({str(k): v for k, v in self.facts(chunk).items() if isinstance(v, int)})
        return dict(counts)

    def chunks(self) -> Iterator[Readings]:
        """All chunks in order, one in memory at a time. Errors: ValueError if some are missing or damaged."""
        if missing := self.missing():
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {self.num_chunks} parts: run again to finish it"
            )
        for chunk in range(self.num_chunks):
            yield self.read(chunk)

    def readings(self) -> Readings:
        """All of them: 400 MB for the features of 50,000 images of Inception's."""
        chunks = list(self.chunks())
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def statistics(self) -> FeatureStatistics:
        """Of the features, accumulated chunk by chunk."""
        parts = (FeatureStatistics.of(chunk["features"]) for chunk in self.chunks())
        return reduce(FeatureStatistics.merged, parts)

    def moments(self) -> Moments:
        """Mean and covariance of the features."""
        return self.statistics().moments(self.identity.sha256)

    def read(self, chunk: int) -> Readings:
        """One chunk. Errors: ValueError if it is damaged."""
        readings, _ = self._unsealed(chunk)
        if {len(rows) for rows in readings.values()} != {len(self.indices(chunk))}:
            raise ValueError(
                f"{self._path(chunk)} does not hold {len(self.indices(chunk))} images: remove it, run again"
            )
        return readings

    def discard(self, made: Sequence[Path]) -> None:
        """Remove a folder that was made for nothing: no chunk is in it.

        Args:
            made: the folder and those above it that `begin` made; none if it was there before.
        """
        if made and len(self.missing()) == self.num_chunks:
            for name in ("features.json", ".lock"):
                (self.folder / name).unlink(missing_ok=True)
            remove_empty(made)

    def _unsealed(self, chunk: int) -> tuple[Readings, dict[str, object]]:
        path = self._path(chunk)
        try:
            readings, metadata = read_sealed(path)
            return readings, parse_json(metadata.get("facts", "{}"), source=str(path))
        except ValueError as error:
            raise ValueError(f"{error}: remove it and run again") from error

    def _lock(self) -> FileLock:
        """Held while a file is written: what lies there half-written when free is a killed process's."""
        return FileLock(self.folder / ".lock")

    def _path(self, chunk: int) -> Path:
        return self.folder / f"features-{chunk * CHUNK:08d}.safetensors"

    def _settings(self) -> str:
        extractor = {"name": self.identity.name, "sha256": self.identity.sha256}
        settings = {"extractor": extractor, "pictures": self.fingerprint, "count": self.count}
        return json.dumps(settings | {"chunk": CHUNK}, indent=1) + "\n"


def describe(
    pictures: ImageSet,
    extractor: Extractor,
    folder: str | Path,
    *,
    batch_size: int = 64,
    rank: int = 0,
    num_ranks: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> FeatureStore:
    """Describe the missing chunks of this process's share; what is done stays, whatever happens.

    Args:
        folder: of the features; finished parts in it are used again.
        rank, num_ranks: this process describes chunks `rank`, `rank + num_ranks`, ...; all must have returned
            before the store is read.
        on_progress: called with images of this share done and in all, first with what was there already.

    Errors: ValueError for an image that cannot be read or is of another size, an extractor that refuses it,
    or a folder of something else.
    """
    store = FeatureStore(Path(folder).expanduser(), extractor.identity, pictures.fingerprint, pictures.count)
    made = missing_folders(store.folder)
    store.begin()
    try:
        _describe_share(
            store, pictures, extractor, batch_size, range(rank, store.num_chunks, num_ranks), on_progress
        )
    except BaseException:
        if num_ranks == 1:
            store.discard(made)
        raise
    return store


def _describe_share(
    store: FeatureStore,
    pictures: ImageSet,
    extractor: Extractor,
    batch_size: int,
    share: range,
    on_progress: Callable[[int, int], None],
) -> None:
    missing = set(store.missing())
    total = sum(len(store.indices(chunk)) for chunk in share)
    done = sum(len(store.indices(chunk)) for chunk in share if chunk not in missing)
    on_progress(done, total)
    for chunk in share:
        if chunk in missing:
            pictures.changes.clear()
            indices = store.indices(chunk)
            batches = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
            parts = [extractor(_checked(pictures.images(batch))) for batch in batches]
            store.write(chunk, joined(parts), pictures.changes)
            done += len(indices)
            on_progress(done, total)


def joined(parts: list[Readings]) -> Readings:
    """Readings of batches, as those of all their images."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _checked(images_B3HW: Tensor) -> Tensor:
    if images_B3HW.ndim != 4 or images_B3HW.shape[1] != 3 or not images_B3HW.is_floating_point():
        raise ValueError(
            "expected images [B, 3, H, W] with real values in [0, 1], got "
            f"{tuple(images_B3HW.shape)} {images_B3HW.dtype}"
        )
    return images_B3HW


def _require_numbers(readings: Readings, indices: range) -> None:
    """Errors: ValueError for a reading that is NaN, or for features that are infinite."""
    for name, rows in readings.items():
        if name == "scores":  # NaN where a reward does not apply
            continue
        wrong = rows.isnan() if name == "log_probabilities" else ~rows.isfinite()
        spoilt_B = wrong.flatten(1).any(dim=1) if rows.ndim > 1 else wrong
        if spoilt_B.any():
            first = indices[int(spoilt_B.long().argmax())]
            raise ValueError(f"the {name} of image {first} are NaN or infinite: check it and what reads it")
