"""Sets of pictures by index, read or drawn when they are needed: 50,000 of them are never in memory."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from swiftmask.data.images.cropping import read_cropped
from swiftmask.data.images.decode import DEFAULT, Decoding, read_picture
from swiftmask.data.images.listing import Listing
from swiftmask.data.sources import Source

OVERVIEW = "grid.png"
"""What `swiftmask generate` calls the sheet of all its pictures."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures by index, none in memory.

    Attributes:
        fingerprint: changes when a picture changes; features found under another one are not used.
        images: `images(indices) -> images_B3HW` in [0, 1], called with ascending indices below `count`.
        changes: counts what `images` has to do to pictures (data/images/decode.py), call by call.
        decoding: how files are read.
        said: sentences for the user about the folder.
        notices: the same, once images have been read.
    """

    count: int
    fingerprint: str
    images: Callable[[Sequence[int]], Tensor]
    changes: Counter[str] = field(default_factory=Counter)
    decoding: Decoding = DEFAULT
    said: tuple[str, ...] = ()
    notices: Callable[[], list[str]] = list

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"a distribution needs at least 2 images, got {self.count}")


def folder_pictures(root: str | Path, decoding: Decoding = DEFAULT) -> Pictures:
    """Generated pictures: every image file below `root`, all of one size, in the order of their names.

    They are never resized, which would hide a mistake and change every metric. Names that start with a dot,
    and the overview that `swiftmask generate` writes, are passed over.

    Errors: FileNotFoundError; ValueError for fewer than two. Reading raises ValueError naming a file that is
    damaged or of another size than the first.
    """
    root = Path(root).expanduser()
    files, said = _listed(root)
    changes: Counter[str] = Counter()

    def read(file: str) -> Tensor:
        picture = read_picture(root / file, decoding)
        changes.update(picture.changes)
        return torch.from_numpy(np.array(picture.image)).permute(2, 0, 1).float() / 255

    size = read(files[0]).shape

    def images(indices: Sequence[int]) -> Tensor:
        return torch.stack([_require_size(read(files[i]), size, files[i]) for i in indices])

    return Pictures(len(files), _fingerprint(root, files, decoding), images, changes, decoding, said)


def cropped_pictures(root: str | Path, size: int, decoding: Decoding = DEFAULT) -> Pictures:
    """Real pictures of any size below `root`, cropped to squares as ADM's reference statistics (data/images).

    Errors: as `folder_pictures`, except that sizes may differ.
    """
    root = Path(root).expanduser()
    files, said = _listed(root)
    changes: Counter[str] = Counter()

    def images(indices: Sequence[int]) -> Tensor:
        cropped = [read_cropped((root / files[i]).read_bytes(), files[i], size, decoding) for i in indices]
        changes.update(change for one in cropped for change in one.changes)
        return torch.stack([one.pixels_3HW for one in cropped]).float() / 255

    fingerprint = _fingerprint(root, files, decoding, f"crop {size}")
    return Pictures(len(files), fingerprint, images, changes, decoding, said)


def source_pictures(source: Source, size: int) -> Pictures:
    """Real images of a data source, cropped to squares and resized as in training."""

    def images(indices: Sequence[int]) -> Tensor:
        return torch.stack([source.read(index, size) for index in indices]).float() / 255

    stamps = [(key, source.stamp(index)) for index, key in enumerate(source.keys)]
    digest = hashlib.sha256(repr((source.identity, size, stamps)).encode()).hexdigest()
    return Pictures(len(stamps), digest, images, notices=source.notices)


def _listed(root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Pictures, and what is to be said of the files that are none."""
    if not root.is_dir():
        raise FileNotFoundError(f"no such image folder: {root}")
    found = Listing.below(root, but=(OVERVIEW,))
    said = found.passed_over.said(root)
    if len(found.files) < 2:
        raise ValueError(
            f"{root} has {len(found.files)} images of a format that Pillow reads: expected at least 2"
            + "".join(f"; {line}" for line in said)
        )
    return found.files, tuple(said)


def _fingerprint(root: Path, files: Sequence[str], decoding: Decoding, *preparation: str) -> str:
    """Of names, sizes, dates and how they are read: reading 50,000 files for their contents would take as
    long as the rest.
    """
    digest = hashlib.sha256(repr((decoding.identity, *preparation)).encode())
    for file in files:
        status = (root / file).stat()
        digest.update(repr((file, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _require_size(image_3HW: Tensor, size: torch.Size, name: str) -> Tensor:
    if image_3HW.shape != size:
        raise ValueError(
            f"{name} is {_text(image_3HW.shape)}, the first image {_text(size)}: metrics need images of "
            "one size, and resizing changes them"
        )
    return image_3HW


def _text(size: torch.Size) -> str:
    return f"{size[-1]}x{size[-2]}"
