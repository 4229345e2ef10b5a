"""Shards: what a run of many images is divided into, written whole, known by their digests, resumable.

A run is a list of images by index. Shard `i` holds the images `i S` to `(i + 1) S - 1`, whoever makes them:
the bytes do not depend on the number of processes. A shard is written in three steps:

1. Each batch is kept in `.shards/` as soon as it is there. A killed process loses the batch that it was
   generating, and no other.
2. When no image is missing, the shard is written under another name and renamed.
3. Its record (`.shards/00000.json`: images, bytes, digest) says that it is done.

`manifest.json` tells the settings, and the records of all shards once they are done. Two processes that write
one shard, such as a worker taken for dead and the one that took its place, write the same bytes.
"""

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swiftmask.core.settings import difference, parse_json
from swiftmask.core.writing import full_disk_named, write_json, written_whole
from swiftmask.fleet.writers import (
    KINDS,
    Columns,
    Entry,
    Kind,
    read_webdataset,
    write_webdataset,
    written,
)

MANIFEST, UNFINISHED = "manifest.json", ".shards"
_PREFIX = "shard-"


@dataclass(frozen=True, slots=True)
class Plan:
    """How many images there are, and how many a shard has."""

    num_images: int
    shard_size: int

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ValueError(f"a shard has at least 1 image, got --shard-size {self.shard_size}")

    @property
    def num_shards(self) -> int:
        return -(-self.num_images // self.shard_size)

    def indices(self, shard: int) -> range:
        """Of the images of a shard."""
        return range(shard * self.shard_size, min(self.num_images, (shard + 1) * self.shard_size))


@dataclass(frozen=True, slots=True)
class ShardFolder:
    """The shards of one run.

    Attributes:
        kind: of the files.
    """

    path: Path
    kind: Kind
    plan: Plan

    def begin(self, settings: dict[str, Any], images: Sequence[Columns], *, overwrite: bool = False) -> None:
        """Write the manifest, or find the same one there.

        Args:
            settings: all that decides an image besides its columns.
            images: columns of all images, in their order.
            overwrite: remove the shards of another run.

        Errors: ValueError naming the difference to another run in this folder, or shards without a manifest.
        """
        ours = self._manifest(settings, images)
        there = self._read(self.path / MANIFEST)
        if overwrite and there is not None and _without_shards(there) != ours:
            self._remove(there)
            there = None
        if there is None:
            if strangers := [path.name for path in self.path.glob(f"{_PREFIX}*")]:
                raise ValueError(
                    f"{self.path} holds shards of an unknown run ({strangers[0]}): choose another --out"
                )
            write_json(self.path / MANIFEST, ours)
        elif found := difference(_flat(_without_shards(there)), _flat(ours)):
            raise ValueError(
                f"{self.path} holds shards of another run ({found}): choose another --out, or --overwrite to "
                "remove them"
            )

    def missing(self) -> list[int]:
        """Shards that are not done, or whose bytes are not those of their record."""
        return [shard for shard in range(self.plan.num_shards) if not self.is_done(shard)]

    def is_done(self, shard: int) -> bool:
        """Whether a shard is there with the bytes of its record."""
        record = self._read(self._record(shard))
        found = None if record is None else written(self.file(shard))
        return record is not None and found is not None and asdict(found).items() <= record.items()

    def kept(self, shard: int) -> set[int]:
        """Indices of the images of an unfinished shard that are there. Damaged batches are removed."""
        indices: set[int] = set()
        for path in self._batches(shard):
            try:
                indices |= {entry.index for entry in read_webdataset(path)}
            except (OSError, EOFError, KeyError, ValueError, tarfile.TarError):
                path.unlink(missing_ok=True)
        return indices

    def keep(self, shard: int, entries: Sequence[Entry]) -> None:
        """Keep a batch of a shard."""
        with written_whole(self._parts(shard) / f"{entries[0].key}.tar") as partial:
            write_webdataset(partial, entries)

    def finish(self, shard: int) -> None:
        """Write a shard whose images are all kept."""
        path, parts = self.file(shard), self._parts(shard)
        partial = parts / f"whole.{os.getpid()}"
        by_index = {entry.index: entry for batch in self._batches(shard) for entry in read_webdataset(batch)}
        with full_disk_named(path):
            KINDS[self.kind].write(partial, [by_index[index] for index in self.plan.indices(shard)])
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
        whole = written(path)
        assert whole is not None
        record = {"file": path.name, "images": len(by_index), **asdict(whole)}
        write_json(self._record(shard), record)
        shutil.rmtree(parts, ignore_errors=True)

    def file(self, shard: int) -> Path:
        """The file, or the folder, of a shard."""
        return self.path / f"{_PREFIX}{shard:05d}{KINDS[self.kind].suffix}"

    def complete(self) -> None:
        """Write the records of all shards into the manifest, when all are done."""
        records = [self._read(self._record(shard)) for shard in range(self.plan.num_shards)]
        there = self._read(self.path / MANIFEST)
        assert there is not None and None not in records, "begin comes first, and every shard is done"
        write_json(self.path / MANIFEST, {**_without_shards(there), "shards": records})
        for left in (self.path / UNFINISHED).iterdir():
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)

    def _manifest(self, settings: dict[str, Any], images: Sequence[Columns]) -> dict[str, Any]:
        digest = hashlib.sha256()
        for columns in images:
            digest.update(json.dumps(dict(columns)).encode() + b"\n")
        whole = {
            "kind": self.kind,
            "num_images": self.plan.num_images,
            "shard_size": self.plan.shard_size,
            "images": digest.hexdigest(),
            "settings": settings,
        }
        return json.loads(json.dumps(whole))

    def _remove(self, there: dict[str, Any]) -> None:
        """The shards that a manifest tells of."""
        plan = Plan(int(there["num_images"]), int(there["shard_size"]))
        other = ShardFolder(self.path, there["kind"], plan)
        for path in map(other.file, range(plan.num_shards)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (self.path / MANIFEST).unlink()
        shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)

    def _batches(self, shard: int) -> list[Path]:
        return sorted(self._parts(shard).glob("[0-9]*.tar"))

    def _parts(self, shard: int) -> Path:
        return self.path / UNFINISHED / f"{shard:05d}"

    def _record(self, shard: int) -> Path:
        return self.path / UNFINISHED / f"{shard:05d}.json"

    def _read(self, path: Path) -> dict[str, Any] | None:
        return parse_json(path.read_bytes(), source=str(path)) if path.is_file() else None


def draw_shard(
    folder: ShardFolder,
    shard: int,
    draw: Callable[[Sequence[int]], Sequence[Entry]],
    *,
    batch_size: int,
) -> int:
    """Generate what a shard lacks, and write it.

    Args:
        draw: generates images by their indices.

    Returns how many images were generated: none if the shard is done.
    """
    if folder.is_done(shard):  # Ray repeats a task whose answer was lost with its node
        return 0
    kept = folder.kept(shard)
    lacking = [index for index in folder.plan.indices(shard) if index not in kept]
    for first in range(0, len(lacking), batch_size):
        folder.keep(shard, draw(lacking[first : first + batch_size]))
    folder.finish(shard)
    return len(lacking)


def _without_shards(manifest: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key != "shards"}


def _flat(manifest: dict[str, Any]) -> dict[str, Any]:
    """Its settings beside the rest, so that a difference is named."""
    return {**manifest, **dict(manifest.get("settings", {})), "settings": None}
