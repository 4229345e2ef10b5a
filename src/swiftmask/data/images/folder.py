"""A folder of images, one subfolder a class, cropped as ADM (Dhariwal and Nichol, arXiv 2105.05233) does.

This is how ImageNet lies on disk, and the preprocessing of MAR (arXiv 2406.11838) and of everything else
measured against ADM's reference statistics.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swiftmask.data.images.decode import DEFAULT, Decoding, decode_picture
from swiftmask.data.images.listing import Listing, PassedOver, is_shown


@dataclass(frozen=True, slots=True, eq=False)
class ImageFolder:
    """Images of one size with class labels.

    Attributes:
        size: pixels of the squares they are cropped to.
        class_names: the subfolders sorted by name; a class's place is its label.
        files: paths below `root`, class after class, sorted within each.
        labels_X: int64, one per file.
        decoding: how they are read.
        passed_over: files beside them that are not read.
    """

    root: Path
    size: int
    class_names: tuple[str, ...]
    files: tuple[str, ...]
    labels_X: Tensor
    decoding: Decoding = DEFAULT
    passed_over: PassedOver = PassedOver()

    @classmethod
    def open(cls, root: str | Path, size: int, decoding: Decoding = DEFAULT) -> Self:
        """List the images below `root`; none is read yet. Names that start with a dot are passed over.

        Errors: FileNotFoundError; ValueError for a folder without class folders, or one without images.
        """
        root = Path(root).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"no such image folder: {root}")
        class_names = sorted(
            entry.name for entry in os.scandir(root) if entry.is_dir() and is_shown(entry.name)
        )
        if not class_names:
            raise ValueError(
                f"{root} has no class folders: expected {root}/CLASS/IMAGE, one subfolder a class"
            )
        files, labels, passed_over = [], [], []
        for label, name in enumerate(class_names):
            found = Listing.below(root / name)
            if not found.files:
                others = "".join(f"; {line}" for line in found.passed_over.said(root / name))
                raise ValueError(
                    f"class folder {root / name} has no images of a format that Pillow reads: fill or remove "
                    f"it, for it counts as a class{others}"
                )
            files += [f"{name}/{file}" for file in found.files]
            passed_over += [f"{name}/{file}" for file in found.passed_over.files]
            labels += [label] * len(found.files)
        others = PassedOver(tuple(passed_over))
        return cls(root, size, tuple(class_names), tuple(files), torch.tensor(labels), decoding, others)

    def __len__(self) -> int:
        return len(self.files)

    def images(self, indices: Iterable[int]) -> Tensor:
        """`images_B3HW` in [0, 1], cropped. Errors: ValueError naming a file that cannot be read."""
        images = [self.read(i).pixels_3HW for i in indices]
        return torch.stack(images).float() / 255

    def read(self, index: int) -> "Cropped":
        """One picture. Errors: OSError; ValueError naming a file that cannot be read."""
        return self.cropped((self.root / self.files[index]).read_bytes(), self.files[index])

    def cropped(self, content: bytes, name: str) -> "Cropped":
        """An image file's bytes. Errors: ValueError with `name`, and what is wrong with the file."""
        return read_cropped(content, name, self.size, self.decoding)


class Cropped(NamedTuple):
    """A square of a picture, uint8 [3, size, size], and what was done to it before (decode.py)."""

    pixels_3HW: Tensor
    changes: tuple[str, ...]


def read_cropped(content: bytes, name: str, size: int, decoding: Decoding) -> Cropped:
    """An image file's bytes. Errors: ValueError with `name`, and what is wrong with the file."""
    picture = decode_picture(content, name, decoding)
    pixels_HW3 = np.array(centre_crop(picture.image, size))
    return Cropped(torch.from_numpy(pixels_HW3).permute(2, 0, 1), picture.changes)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's square: halve (box filter) while the short side is at least twice `size`, bicubic to `size`, cut.

    Sides are rounded half to even after the bicubic step and down after each halving, as there.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
