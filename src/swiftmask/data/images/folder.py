"""A folder of images, one subfolder a class, cropped as ADM (Dhariwal and Nichol, arXiv 2105.05233) does.

This is how ImageNet lies on disk, and the preprocessing of MAR (arXiv 2406.11838) and of everything else
measured against ADM's reference statistics.
"""

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swiftmask.core.files import first_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True, slots=True, eq=False)
class ImageFolder:
    """Images of one size with class labels.

    Attributes:
        size: pixels of the squares they are cropped to.
        class_names: the subfolders sorted by name; a class's place is its label.
        files: paths below `root`, class after class, sorted within each.
        labels_X: int64, one per file.
    """

    root: Path
    size: int
    class_names: tuple[str, ...]
    files: tuple[str, ...]
    labels_X: Tensor

    @classmethod
    def open(cls, root: str | Path, size: int) -> Self:
        """List the images below `root`; none is read yet. Names that start with a dot are passed over.

        Errors: FileNotFoundError; ValueError for a folder without class folders, or one without images.
        """
        root = Path(root).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"no such image folder: {root}")
        class_names = sorted(
            entry.name for entry in os.scandir(root) if entry.is_dir() and _shown(entry.name)
        )
        if not class_names:
            raise ValueError(
                f"{root} has no class folders: expected {root}/CLASS/IMAGE, one subfolder a class"
            )
        files, labels = [], []
        for label, name in enumerate(class_names):
            found = sorted(_images_below(root / name))
            if not found:
                raise ValueError(
                    f"class folder {root / name} has no images ({' '.join(SUFFIXES)}): fill or remove it, "
                    "for it counts as a class"
                )
            files += [f"{name}/{file}" for file in found]
            labels += [label] * len(found)
        return cls(root, size, tuple(class_names), tuple(files), torch.tensor(labels))

    def __len__(self) -> int:
        return len(self.files)

    def images(self, indices: Iterable[int]) -> Tensor:
        """`images_B3HW` in [0, 1], cropped. Errors: ValueError naming a file that cannot be read."""
        images = [decode((self.root / self.files[i]).read_bytes(), self.size, self.files[i]) for i in indices]
        return torch.stack(images).float() / 255


def decode(content: bytes, size: int, name: str) -> Tensor:
    """An image file's bytes to uint8 [3, size, size], cropped.

    Errors: ValueError with `name` and what is wrong with the file.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            cropped = centre_crop(image.convert("RGB"), size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {name} ({first_line(error)})") from error
    return torch.from_numpy(np.array(cropped)).permute(2, 0, 1)


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


def mirrored_at_random(images_B3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture, or with probability 0.5 its mirror image."""
    mirrored_B = torch.rand(len(images_B3HW), generator=generator) < 0.5
    mirrored_B111 = mirrored_B.to(images_B3HW.device)[:, None, None, None]
    return torch.where(mirrored_B111, images_B3HW.flip(-1), images_B3HW)


def _images_below(folder: Path) -> Iterator[str]:
    for place, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = filter(_shown, subfolders)
        below = Path(place).relative_to(folder)
        yield from ((below / name).as_posix() for name in names if _shown(name) and _is_image(name))


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _shown(name: str) -> bool:
    return not name.startswith(".")
