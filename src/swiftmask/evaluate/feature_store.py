"""Features of a set of pictures on disk, described once: resumable, and shared by any number of processes.

Every 256 pictures make one file. It depends on those pictures alone, so a killed run continues with the files
that are missing, and processes that divide them find the same numbers as one process.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor

from swiftmask.core.files import require_keys
from swiftmask.core.sealed import read_sealed, sealed
from swiftmask.core.settings import parse_json, read_text
from swiftmask.core.writing import (
    missing_folders,
    remove_empty,
    remove_partials,
    write_text,
    written_whole,
)
from swiftmask.evaluate.extractors import Description, Extractor, Identity
from swiftmask.evaluate.pictures import Pictures
from swiftmask.evaluate.statistics import FeatureStatistics, Moments

CHUNK = 256
"""Pictures per file of features."""


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Features of one set of pictures in a folder, a file a chunk; `describe` fills it."""

    folder: Path
    identity: Identity
    fingerprint: str
    count: int

    @property
    def num_chunks(self) -> int:
        return -(-self.count // CHUNK)

    def indices(self, chunk: int) -> range:
        """Pictures of a chunk."""
        return range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.count))

    def missing(self) -> list[int]:
        """Chunks not described yet."""
        return [chunk for chunk in range(self.num_chunks) if not self._path(chunk).exists()]

    def begin(self) -> None:
        """Claim the folder, and remove what killed processes were writing there.

        Errors: ValueError if it holds features of other pictures or extractors.
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

    def write(self, chunk: int, description: Description, changes: Mapping[str, int]) -> None:
        """One chunk, whole or not at all, with what had to be done to its pictures."""
        tensors = {"features": description.features_BD.contiguous()}
        if description.log_probabilities_BV is not None:
            tensors["log_probabilities"] = description.log_probabilities_BV.contiguous()
        metadata = sealed(tensors, {"changes": json.dumps(changes)})
        with self._lock(), written_whole(self._path(chunk)) as partial:
            save_file(tensors, partial, metadata)

    def changes(self) -> dict[str, int]:
        """Of how many pictures something was converted, by what it was (data/images/decode.py)."""
        counts: Counter[str] = Counter()
        for chunk in range(self.num_chunks):
            counts.update(_unsealed(self._path(chunk))[1])
        return dict(counts)

    def chunks(self) -> Iterator[Description]:
        """All chunks in order, one in memory at a time. Errors: ValueError if some are missing or damaged."""
        if missing := self.missing():
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {self.num_chunks} parts: run again to finish it"
            )
        for chunk in range(self.num_chunks):
            yield self._read(chunk)

    def statistics(self) -> FeatureStatistics:
        """Accumulated chunk by chunk."""
        parts = (FeatureStatistics.of(chunk.features_BD) for chunk in self.chunks())
        return reduce(FeatureStatistics.merged, parts)

    def moments(self) -> Moments:
        """Mean and covariance."""
        return self.statistics().moments(self.identity.sha256)

    def features(self) -> Tensor:
        """Features of all pictures, float32 [X, D]: 400 MB for 50,000 of Inception's."""
        return torch.cat([chunk.features_BD for chunk in self.chunks()])

    def log_probabilities(self) -> Tensor | None:
        """Of all pictures, float32 [X, V]; None if the extractor is no classifier."""
        rows = [chunk.log_probabilities_BV for chunk in self.chunks()]
        return torch.cat([row for row in rows if row is not None]) if rows[0] is not None else None

    def _read(self, chunk: int) -> Description:
        path = self._path(chunk)
        tensors, _ = _unsealed(path)
        description = Description(tensors["features"], tensors.get("log_probabilities"))
        if len(description.features_BD) != len(self.indices(chunk)):
            raise ValueError(
                f"{path} does not hold {len(self.indices(chunk))} images: remove it and run again"
            )
        return description

    def discard(self, made: Sequence[Path]) -> None:
        """Remove a folder that was made for nothing: no chunk is in it.

        Args:
            made: the folder and those above it that `begin` made; none if it was there before.
        """
        if made and len(self.missing()) == self.num_chunks:
            for name in ("features.json", ".lock"):
                (self.folder / name).unlink(missing_ok=True)
            remove_empty(made)

    def _lock(self) -> FileLock:
        """Held while a file is written: what lies there half-written when free is a killed process's."""
        return FileLock(self.folder / ".lock")

    def _path(self, chunk: int) -> Path:
        return self.folder / f"features-{chunk * CHUNK:08d}.safetensors"

    def _settings(self) -> str:
        settings = {"extractor": asdict(self.identity), "pictures": self.fingerprint, "count": self.count}
        return json.dumps(settings | {"chunk": CHUNK}, indent=1) + "\n"


def describe(
    pictures: Pictures,
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
        on_progress: called with pictures of this share done and in all, first with what was there already.

    Errors: ValueError for a picture that cannot be read or is of another size, an extractor that refuses it,
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
    pictures: Pictures,
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
            description = _described(pictures, extractor, store.indices(chunk), batch_size)
            store.write(chunk, description, pictures.changes)
            done += len(store.indices(chunk))
            on_progress(done, total)


def _unsealed(path: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Features, and what had to be done to the pictures. Errors: ValueError if the file is damaged."""
    try:
        tensors, metadata = read_sealed(path)
        require_keys(tensors, {"features": 2}, str(path), "a file of features")
        return tensors, parse_json(metadata.get("changes", "{}"), source=str(path))
    except ValueError as error:
        raise ValueError(f"{error}: remove it and run again") from error


def _described(pictures: Pictures, extractor: Extractor, indices: range, batch_size: int) -> Description:
    batches = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
    parts = [extractor(_checked(pictures.images(batch))) for batch in batches]
    rows = [part.log_probabilities_BV for part in parts if part.log_probabilities_BV is not None]
    found = Description(torch.cat([part.features_BD for part in parts]), torch.cat(rows) if rows else None)
    _require_numbers(found, indices)
    return found


def _checked(images_B3HW: Tensor) -> Tensor:
    if images_B3HW.ndim != 4 or images_B3HW.shape[1] != 3 or not images_B3HW.is_floating_point():
        raise ValueError(
            "expected images [B, 3, H, W] with real values in [0, 1], got "
            f"{tuple(images_B3HW.shape)} {images_B3HW.dtype}"
        )
    return images_B3HW


def _require_numbers(found: Description, indices: range) -> None:
    spoilt_B = ~found.features_BD.isfinite().all(dim=1)
    if found.log_probabilities_BV is not None:
        spoilt_B |= found.log_probabilities_BV.isnan().any(dim=1)
    if spoilt_B.any():
        first = indices[int(spoilt_B.long().argmax())]
        raise ValueError(f"the features of image {first} are NaN or infinite: check it and the extractor")
