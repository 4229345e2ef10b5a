"""What a codec made of training pictures, on disk: made once, and read by later runs of the same settings."""

import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor

from swiftmask.core.sealed import read_sealed, sealed
from swiftmask.core.writing import remove_partials, written_whole
from swiftmask.training.processes import processes

SHARD = 10_000
"""Pictures per file of a cache."""

_VERSION = 1
"""Of what is drawn and encoded: raise it when the same settings give other tensors."""

Make = Callable[[int, int], dict[str, Tensor]]
"""`make(first, count)`: named tensors with one row for each of `count` pictures from number `first` on."""


def cached(folder: Path, num_pictures: int, make: Make, *, made_by: tuple[object, ...]) -> dict[str, Tensor]:
    """The tensors of all pictures; files that are not there are made first, of several processes by the
    first of them. Runs may share a folder.

    Args:
        made_by: all that decides the tensors besides the pictures' numbers: weights, sizes, the source. A
            file is named by it, so that none is taken for another's.

    Errors: ValueError naming a damaged file.
    """
    key = f"{zlib.crc32(repr((_VERSION, *made_by)).encode()):08x}"
    starts = range(0, num_pictures, SHARD)
    counts = [min(SHARD, num_pictures - first) for first in starts]
    paths = [
        folder / f"pictures_{first:07d}_{count}-{key}.safetensors"
        for first, count in zip(starts, counts, strict=True)
    ]
    with processes().main_process_first():
        if not all(path.exists() for path in paths):
            _fill(folder, paths, lambda index: make(starts[index], counts[index]))
        shards = [_read(path, count) for path, count in zip(paths, counts, strict=True)]
    return {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}


def _fill(folder: Path, paths: list[Path], make: Callable[[int], dict[str, Tensor]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        remove_partials(folder)
        for index, path in enumerate(paths):
            if path.exists():  # by now: another run may have made it
                continue
            tensors = make(index)
            with written_whole(path) as partial:
                save_file(tensors, partial, metadata=sealed(tensors, {}))


def _read(path: Path, count: int) -> dict[str, Tensor]:
    try:
        tensors = read_sealed(path)[0]
        if any(value.ndim == 0 or len(value) != count for value in tensors.values()):
            raise ValueError(f"{path} does not hold {count} pictures")
        return tensors
    except ValueError as error:
        raise ValueError(f"{error}: delete it, and the next run makes it again") from error
