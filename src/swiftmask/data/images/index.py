"""The files of a latent cache: `index.json`, `moments.npy` and `images.npy`, and how they are written.

The arrays are created at full size when the first batch is encoded and filled row by row; `index.json` says
how many rows count. It is replaced only after the rows are on the disk, so that a run killed at any moment,
even by a power cut, leaves a cache that continues.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, Self

import numpy as np
import torch

from swiftmask.core.ranges import check_fields
from swiftmask.core.reading import DAMAGES
from swiftmask.core.settings import first_line, read_json, record_of
from swiftmask.core.writing import full_disk_named, remove_partials_of, written_whole
from swiftmask.data.images.decode import Decoding, said

INDEX, MOMENTS, IMAGES = "index.json", "moments.npy", "images.npy"
DTYPES = {
    "float16": (torch.float16, np.dtype(np.float16)),
    "bfloat16": (torch.bfloat16, np.dtype(np.uint16)),
}
"""Of the moments, and how they lie on disk: numpy has no bfloat16, its bits are kept as integers."""

IMAGE_FACTS = np.dtype(
    [("label", "<i8"), ("num_bytes", "<i8"), ("modified_ns", "<i8"), ("checksum", "<u4"), ("readable", "?")]
)
"""A row of `images.npy`: `ImageFacts`."""


class ImageFacts(NamedTuple):
    """An image's label, and what tells whether its file has changed since it was encoded."""

    label: int
    num_bytes: int = 0
    modified_ns: int = 0
    checksum: int = 0
    readable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheIndex:
    """What a cache holds and how far it is.

    Attributes:
        encoder: name of the encoder and its weights.
        dtype: of the moments, "float16" or "bfloat16".
        image_size: pixels of the squares that were encoded.
        num_images: rows of the arrays.
        files: SHA-256 of the names of the images, in order.
        moments: shape of one image's moments, [2C, H, W]; empty before the first batch.
        done: rows that count.
        decoding: identity of the rules by which the images were read (decode.py).
        unreadable: images that were left out; their rows hold zeros.
        changed: of how many images something was converted, by what it was (decode.py).
    """

    encoder: str
    dtype: str
    image_size: int
    num_images: int
    files: str
    class_names: tuple[str, ...]
    moments: tuple[int, ...] = ()
    done: int = 0
    decoding: str = "rules 0"
    unreadable: tuple[str, ...] = ()
    changed: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be {' or '.join(DTYPES)}, got {self.dtype!r}")
        if not 0 <= self.done <= self.num_images:
            raise ValueError(f"done must be between 0 and {self.num_images}, got {self.done}")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Errors: FileNotFoundError; ValueError if damaged."""
        path = folder / INDEX
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: expected a folder that cache_latents wrote")
        try:
            return record_of(cls, read_json(path), source=str(path))
        except ValueError as error:
            raise ValueError(f"{error}: remove the folder and cache again") from error

    def write(self, folder: Path) -> None:
        """Replace `index.json`, whole or not at all."""
        remove_partials_of(folder / INDEX)
        with written_whole(folder / INDEX) as partial, partial.open("w") as file:
            file.write(json.dumps(asdict(self), indent=1) + "\n")
            _to_disk(file)

    def said(self, decoding: Decoding) -> list[str]:
        """What was converted, and left out, as sentences."""
        lines = said(self.changed, self.done, decoding)
        if self.unreadable:
            named = ", ".join(self.unreadable[:3]) + (", ..." if len(self.unreadable) > 3 else "")
            lines.append(f"{len(self.unreadable)} of {self.done} images could not be read: {named}")
        return lines

    @property
    def shape(self) -> tuple[int, ...]:
        """Of `moments.npy`: image, as it is or mirrored, and one's moments [num_images, 2, 2C, H, W]."""
        return (self.num_images, 2, *self.moments)


def create_arrays(folder: Path, index: CacheIndex) -> None:
    """Both arrays at full size, empty. Errors: ValueError if the disk cannot hold them."""
    dtype = DTYPES[index.dtype][1]
    needed = int(np.prod(index.shape)) * dtype.itemsize + index.num_images * IMAGE_FACTS.itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the latents of {index.num_images} images need {needed / 1e9:.1f} GB and {folder} has "
            f"{free / 1e9:.1f} GB left: free some, or choose another folder"
        )
    for name, kind, shape in ((MOMENTS, dtype, index.shape), (IMAGES, IMAGE_FACTS, (index.num_images,))):
        np.lib.format.open_memmap(folder / name, mode="w+", dtype=kind, shape=shape)


def open_array(folder: Path, name: str, dtype: np.dtype, shape: Sequence[int]) -> np.memmap:
    """One of the arrays, mapped into memory to be read. Errors: ValueError if not as the index says."""
    path = folder / name
    mend = "remove the folder and cache again"
    try:
        rows = np.load(path, mmap_mode="r")
    except DAMAGES as error:
        raise ValueError(f"{path} is missing or truncated ({first_line(error)}): {mend}") from error
    if rows.dtype != dtype or rows.shape != tuple(shape):
        raise ValueError(f"{path} holds {rows.dtype} {rows.shape}, expected {dtype} {tuple(shape)}: {mend}")
    return rows


def write_rows(path: Path, first: int, rows: np.ndarray) -> None:
    """Overwrite rows of an array; they are on the disk when this returns.

    Not through a memory map: there, a full disk ends the process instead of raising OSError.
    """
    offset = np.load(path, mmap_mode="r").offset + first * rows[0].nbytes
    with full_disk_named(path), path.open("r+b") as file:
        file.seek(offset)
        file.write(rows.tobytes())
        _to_disk(file)


def _to_disk(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())
