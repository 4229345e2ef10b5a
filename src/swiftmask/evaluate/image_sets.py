"""Sets of images by index, read or generated when they are needed: 50,000 of them are never in memory."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from swiftmask.data.images.cropping import centre_crop
from swiftmask.data.images.decode import DEFAULT, Decoding, read_image
from swiftmask.data.images.listing import Listing
from swiftmask.data.sources import Source

OVERVIEW = "grid.png"
"""What `swiftmask generate` calls the sheet of all its pictures."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images by index, none in memory.

    Attributes:
        fingerprint: changes when an image changes; features found under another one are not used.
        images: `images(indices) -> images_B3HW` in [0, 1], called with ascending indices below `count`.
        changes: counts what `images` has to do to images (data/images/decode.py), call by call.
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


def folder_images(root: str | Path, decoding: Decoding = DEFAULT, *, crop: int | None = None) -> ImageSet:
    """Every image file below `root` in the order of their names.

    Names that start with a dot, and the overview that `swiftmask generate` writes, are passed over.

    Args:
        crop: side of squares to crop images of any size to, as ADM's reference statistics (data/images).
            Without it all images must be of one size: resizing would hide a mistake and change every metric.

    Errors: FileNotFoundError; ValueError for fewer than two. Reading raises ValueError naming a file that is
    damaged or of another size than the first.
    """
    root = Path(root).expanduser()
    files, said = _listed(root)
    changes: Counter[str] = Counter()

    def read(file: str) -> Tensor:
        path = root / file
        picture = read_image(path, decoding)
        changes.update(picture.changes)
        image = picture.image if crop is None else centre_crop(picture.image, crop)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    size = read(files[0]).shape if crop is None else torch.Size((3, crop, crop))

    def images(indices: Sequence[int]) -> Tensor:
        return torch.stack([_require_size(read(files[i]), size, files[i]) for i in indices])

    prepared = () if crop is None else (f"crop {crop}",)
    fingerprint = _fingerprint(root, files, decoding, *prepared)
    return ImageSet(len(files), fingerprint, images, changes, decoding, said)


def source_images(source: Source, size: int) -> ImageSet:
    """Real images of a data source, cropped to squares and resized as in training."""

    def images(indices: Sequence[int]) -> Tensor:
        return torch.stack([source.read(index, size) for index in indices]).float() / 255

    stamps = [(key, source.stamp(index)) for index, key in enumerate(source.keys)]
    digest = hashlib.sha256(repr((source.identity, size, stamps)).encode()).hexdigest()
    return ImageSet(len(stamps), digest, images, notices=source.notices)


def _listed(root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Images, and what is to be said of the files that are none."""
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
