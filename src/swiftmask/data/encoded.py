"""The cache of what an encoder makes of a source's images: codes, moments of latents, or plain pixels.

One row per item, found by the item's key and stamp, so that one image more costs one encoding, in files of
`SHARD` items that are mapped into memory. A run that is killed continues at the last whole file; of several
processes each encodes its share.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from swiftmask.core.sealed import read_sealed, sealed
from swiftmask.core.settings import first_line
from swiftmask.core.writing import remove_partials, written_whole
from swiftmask.data.sources.source import Source

SHARD = 2048
"""Items per file."""

_VERSION = 1
"""Raise it when the same settings give other rows."""

_READ_AHEAD = 64
_LONGEST_WAIT_S = -1  # of another run that fills the same cache: it is never too late to read its rows

Encode = Callable[[Tensor], Tensor]
"""`encode(images_B3HW in [0, 1], on the CPU) -> rows [B, ...]` in the dtype they are kept in, anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which part of the missing rows this process encodes, and how it waits for the others."""

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None


class EncodedImages:
    """Rows of some items, in the order of `items`.

    Attributes:
        items: indices into the source, int64 [X]; items that could not be read are not among them.
    """

    def __init__(self, items: Tensor, places_X2: Tensor, shards: Sequence[Tensor]) -> None:
        self.items = items
        self._places_X2 = places_X2
        self._shards = shards

    def __len__(self) -> int:
        return len(self.items)

    def rows(self, indices_B: Tensor, *, mirrored_B: Tensor | None = None) -> Tensor:
        """Rows of some of the items: [B, ...].

        Args:
            mirrored_B: which of them as mirror images, if the cache holds those.
        """
        places = self._places_X2[indices_B].tolist()
        flipped = [0] * len(places) if mirrored_B is None else mirrored_B.long().tolist()
        return torch.stack([self._shards[s][r, m] for (s, r), m in zip(places, flipped, strict=True)])


def encoded_images(  # noqa: PLR0913 - what decides the rows, and how they are made
    source: Source,
    size: int,
    encode: Encode,
    folder: Path,
    *,
    encoder: str,
    mirrored: bool = False,
    batch_size: int = 64,
    max_unreadable: int = 0,
    share: Share | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> EncodedImages:
    """The rows of every item of a source; those that are not in `folder` yet are encoded first.

    Args:
        size: side in pixels of the squares that `encode` gets.
        folder: of the caches; several sources and encoders may share it.
        encoder: what decides the rows besides the pixels: a name and a fingerprint of weights.
        mirrored: whether each row is kept for the mirror image, too.
        max_unreadable: items that each process may leave out because they cannot be read.
        on_progress: called with the items done and in all.

    Errors: ValueError naming an item that cannot be read, or a damaged file and what to do about it.
    """
    share = share or Share()
    key = f"{zlib.crc32(repr((_VERSION, encoder, size, source.identity, mirrored)).encode()):08x}"
    folder = folder / key
    folder.mkdir(parents=True, exist_ok=True)
    report = on_progress or (lambda done, total: None)
    names = [f"{key}|{source.stamp(i)}" for i, key in enumerate(source.keys)]
    with ExitStack() as stack:
        if share.rank == 0:
            stack.enter_context(FileLock(folder / ".lock", timeout=_LONGEST_WAIT_S))
            remove_partials(folder)
        share.wait()
        found = _Index.read(folder)
        share.wait()  # nobody writes before everybody has read
        missing = [i for i, name in enumerate(names) if name not in found.place]
        report(len(names) - len(missing), len(names))
        mine = missing[share.rank :: share.count]
        work = _Work(source, size, encode, mirrored, batch_size, max_unreadable)
        done = 0
        for start in range(0, len(mine), SHARD):
            part = mine[start : start + SHARD]
            for count in work.write(folder, part, [names[i] for i in part]):
                done += count
                report(len(names) - len(missing) + done * share.count, len(names))
        share.wait()
    encoded = _Index.read(folder).select(names)
    if not len(encoded):
        raise ValueError(f"none of {len(names)} images of {source.name} could be read")
    return encoded


@dataclass(frozen=True, slots=True)
class _Index:
    """What the files of a cache hold.

    Attributes:
        place: file and row of each item by name; row -1 for an item that cannot be read.
    """

    place: dict[str, tuple[int, int]]
    shards: list[Tensor]

    @classmethod
    def read(cls, folder: Path) -> "_Index":
        place: dict[str, tuple[int, int]] = {}
        shards: list[Tensor] = []
        for path in sorted(folder.glob("rows-*.safetensors")):
            rows, names, unreadable = _read(path)
            shards.append(rows)
            place |= {name: (len(shards) - 1, row) for row, name in enumerate(names)}
            place |= {name: (len(shards) - 1, -1) for name in unreadable}
        return cls(place, shards)

    def select(self, names: Sequence[str]) -> EncodedImages:
        places_X2 = torch.tensor([self.place[name] for name in names]).view(-1, 2)
        items = (places_X2[:, 1] >= 0).nonzero()[:, 0]
        return EncodedImages(items, places_X2[items], self.shards)


@dataclass(frozen=True, slots=True)
class _Work:
    source: Source
    size: int
    encode: Encode
    mirrored: bool
    batch_size: int
    max_unreadable: int
    unreadable: list[str] = field(default_factory=list)

    def write(self, folder: Path, items: Sequence[int], names: Sequence[str]) -> Iterator[int]:
        """Encode items into one file; gives how many each batch had."""
        rows: list[Tensor] = []
        kept: list[str] = []
        before = len(self.unreadable)
        for batch in self._batches(items):
            good = [(i, pixels) for i, pixels in batch if isinstance(pixels, Tensor)]
            bad = [(i, problem) for i, problem in batch if isinstance(problem, Exception)]
            self.unreadable.extend(names[i] for i, _ in bad)
            if len(self.unreadable) > self.max_unreadable:
                raise ValueError(
                    f"{bad[0][1]}: repair or remove it, or leave such images out (max_unreadable="
                    f"{len(self.unreadable)})"
                ) from bad[0][1]
            if good:
                rows.append(self._encoded(torch.stack([pixels for _, pixels in good])))
                kept += [names[i] for i, _ in good]
            yield len(batch)
        name = zlib.crc32("\0".join(names).encode("utf-8", "surrogateescape"))
        tensors = {"rows": torch.cat(rows) if rows else torch.empty(0)}
        content = {"names": json.dumps(kept), "unreadable": json.dumps(self.unreadable[before:])}
        with written_whole(folder / f"rows-{name:08x}.safetensors") as partial:
            save_file(tensors, partial, metadata=sealed(tensors, content))

    def _batches(self, items: Sequence[int]) -> Iterator[list[tuple[int, Tensor | Exception]]]:
        """Places within `items` with their pixels, or why there are none; read ahead by threads."""
        with ThreadPoolExecutor() as readers:
            reading = [readers.submit(self._read, item) for item in items[: self.batch_size + _READ_AHEAD]]
            for start in range(0, len(items), self.batch_size):
                stop = min(start + self.batch_size, len(items))
                batch = [(i, reading[i].result()) for i in range(start, stop)]
                ahead = items[len(reading) : stop + self.batch_size + _READ_AHEAD]
                reading += [readers.submit(self._read, item) for item in ahead]
                for i in range(start, stop):
                    reading[i] = None  # type: ignore[call-overload]  # its pixels are done with
                yield batch

    def _read(self, item: int) -> Tensor | Exception:
        try:
            return self.source.read(item, self.size)
        except OSError as error:
            return ValueError(f"cannot read image {self.source.keys[item]} ({error.strerror or error})")
        except ValueError as error:
            return error

    @torch.no_grad()
    def _encoded(self, pixels_B3HW: Tensor) -> Tensor:
        """Rows [B, M, ...] of images, and of their mirror images if those are kept (M = 2)."""
        images_B3HW = pixels_B3HW.float() / 255
        views = [images_B3HW, images_B3HW.flip(-1)] if self.mirrored else [images_B3HW]
        rows = torch.stack([self.encode(view).cpu() for view in views], dim=1)
        if rows.is_floating_point() and not rows.isfinite().all():
            raise ValueError(f"the encoder gives NaN or infinite values for images of {self.source.name}")
        return rows


def _read(path: Path) -> tuple[Tensor, list[str], list[str]]:
    """Rows (mapped into memory), names, and names of what could not be read.

    The checksum is compared the first time that a process reads a small file; large ones are only mapped.
    """
    try:
        if path.stat().st_size < _CHECKED_BYTES:
            tensors, metadata = read_sealed(path)
        else:
            with safe_open(path, framework="pt") as file:
                tensors, metadata = {"rows": file.get_tensor("rows")}, dict(file.metadata())
        return tensors["rows"], json.loads(metadata["names"]), json.loads(metadata["unreadable"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        what = reason if str(path) in reason else f"{path} is damaged ({reason})"
        raise ValueError(f"{what}: delete it, and the next run makes it again") from error


_CHECKED_BYTES = 64 * 1024 * 1024
