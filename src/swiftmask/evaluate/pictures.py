"""Sets of pictures by index, read or drawn when they are needed: 50,000 of them are never in memory."""

import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swiftmask.core.files import first_line
from swiftmask.data.images import ImageFolder
from swiftmask.data.images.folder import SUFFIXES

OVERVIEW = "grid.png"
"""What `swiftmask generate` calls the sheet of all its pictures."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures by index, none in memory.

    Attributes:
        fingerprint: changes when a picture changes; features found under another one are not used.
        images: `images(indices) -> images_B3HW` in [0, 1], called with ascending indices below `count`.
    """

    count: int
    fingerprint: str
    images: Callable[[Sequence[int]], Tensor]

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"a distribution needs at least 2 pictures, got {self.count}")


def folder_pictures(root: str | Path) -> Pictures:
    """Generated pictures: every image file below `root`, all of one size, in the order of their names.

    They are never resized, which would hide a mistake and change every metric. Names that start with a dot,
    and the overview that `swiftmask generate` writes, are passed over.

    Errors: FileNotFoundError; ValueError for fewer than two. Reading raises ValueError naming a file that is
    damaged or of another size than the first.
    """
    root = Path(root).expanduser()
    files = _listed(root)
    size = _read(root / files[0]).shape

    def images(indices: Sequence[int]) -> Tensor:
        return torch.stack([_require_size(_read(root / files[i]), size, files[i]) for i in indices])

    return Pictures(len(files), _fingerprint(root, files), images)


def cropped_pictures(root: str | Path, size: int) -> Pictures:
    """Real pictures of any size below `root`, cropped to squares as ADM's reference statistics (data/images).

    Errors: as `folder_pictures`, except that sizes may differ.
    """
    root = Path(root).expanduser()
    files = _listed(root)
    folder = ImageFolder(root, size, (), files, torch.zeros(len(files), dtype=torch.int64))
    return Pictures(len(files), _fingerprint(root, files, f"crop {size}"), folder.images)


def streamed_pictures(batches: Iterable[Tensor], count: int, fingerprint: str) -> Pictures:
    """The first `count` pictures of an iterator of batches [B, 3, H, W], each used at most once.

    Pictures that are not asked for are drawn and passed over: a run resumes if the iterator repeats itself.

    Errors: reading raises ValueError where the iterator ends early or its pictures differ in size.
    """
    numbered = enumerate(itertools.chain.from_iterable(batches))
    size: list[torch.Size] = []

    def image(index: int) -> Tensor:
        found = next((picture for place, picture in numbered if place == index), None)
        if found is None:
            raise ValueError(f"the pictures ended before number {index}: expected {count}")
        if not size:
            size.append(found.shape)
        return _require_size(found, size[0], f"picture {index}")

    return Pictures(count, fingerprint, lambda indices: torch.stack([image(index) for index in indices]))


def _listed(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise FileNotFoundError(f"no such image folder: {root}")
    below = (path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    shown = (path for path in below if not any(part.startswith(".") for part in path.parts))
    shown = (path for path in shown if path.name != OVERVIEW)
    files = tuple(sorted(path.as_posix() for path in shown))
    if len(files) < 2:
        raise ValueError(f"{root} has {len(files)} images ({' '.join(SUFFIXES)}): expected at least 2")
    return files


def _fingerprint(root: Path, files: Sequence[str], *preparation: str) -> str:
    """Of names, sizes and dates: reading 50,000 files for their contents would take as long as the rest."""
    digest = hashlib.sha256(repr(preparation).encode())
    for file in files:
        status = (root / file).stat()
        digest.update(repr((file, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _read(path: Path) -> Tensor:
    """An image file as it is: [3, H, W] in [0, 1]."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            pixels_HW3 = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {path} ({first_line(error)})") from error
    return torch.from_numpy(pixels_HW3).permute(2, 0, 1).float() / 255


def _require_size(image_3HW: Tensor, size: torch.Size, name: str) -> Tensor:
    if image_3HW.shape != size:
        raise ValueError(
            f"{name} is {_text(image_3HW.shape)}, the first picture {_text(size)}: metrics need pictures of "
            "one size, and resizing changes them"
        )
    return image_3HW


def _text(size: torch.Size) -> str:
    return f"{size[-1]}x{size[-2]}"
