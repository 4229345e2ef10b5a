"""What CLIP does to an image before it looks at it, in differentiable tensor operations.

The processors of transformers round to bytes on the way, through which no gradient flows. Same arithmetic
otherwise: antialiased bicubic resize of the short side, centre crop, mean and standard deviation of the
checkpoint's own `preprocessor_config.json`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from swiftmask.core.settings import first_line, read_json

CONFIG = "preprocessor_config.json"
_MOST_PIXELS = 16_384
_BICUBIC = 3
"""PIL's number for it, which is what the file holds."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Images in [0, 1] to the input of a CLIP image encoder.

    Attributes:
        short_side: pixels of the shorter side after resizing.
        crop: rows and columns kept at the centre.
        mean, std: of each colour.
    """

    short_side: int
    crop: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        sides = (self.short_side, *self.crop)
        if not all(type(side) is int and 1 <= side <= _MOST_PIXELS for side in sides):
            raise ValueError(f"sizes must be whole numbers between 1 and {_MOST_PIXELS}, got {sides}")
        if max(self.crop) > self.short_side:
            raise ValueError(f"a crop of {self.crop} does not fit into a short side of {self.short_side}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"expected mean and std of three colours, got {self.mean} and {self.std}")
        if not all(type(value) is not bool and 0 <= value <= 1 for value in (*self.mean, *self.std)):
            raise ValueError(f"mean and std must be between 0 and 1, got {self.mean} and {self.std}")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """From `preprocessor_config.json`, in its old form (`"size": 224`) or today's.

        Errors: FileNotFoundError; ValueError if damaged, or if it asks for anything but bicubic resizing.
        """
        path = folder / CONFIG
        expected = "a CLIP folder has one; copy it from the checkpoint's repository"
        content = read_json(path, expected=expected)
        try:
            resample = content.get("resample", _BICUBIC)
            found = cls(
                short_side=_short_side(content["size"]),
                crop=_crop(content["crop_size"]),
                mean=tuple(content["image_mean"]),
                std=tuple(content["image_std"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{path} does not describe CLIP's preprocessing ({type(error).__name__}: "
                f"{first_line(error)}): copy it again from the checkpoint's repository"
            ) from error
        if resample != _BICUBIC:
            raise ValueError(f"{path}: expected bicubic resizing (resample 3), got resample {resample}")
        return found

    def __call__(self, images_B3HW: Tensor) -> Tensor:
        """Resized, cropped and normalised images, at least float32, [B, 3, *crop]."""
        images_B3HW = images_B3HW.to(torch.promote_types(images_B3HW.dtype, torch.float32))
        cropped_B3HW = self._crop(self._resize(images_B3HW))
        mean_311, std_311 = (cropped_B3HW.new_tensor(row)[:, None, None] for row in (self.mean, self.std))
        return (cropped_B3HW - mean_311) / std_311

    def _resize(self, images_B3HW: Tensor) -> Tensor:
        height, width = images_B3HW.shape[-2:]
        short = min(height, width)
        # Rounded down, as the processors of transformers and torchvision do.
        rows, columns = self.short_side * height // short, self.short_side * width // short
        for size in ((height, columns), (rows, columns)):
            images_B3HW = _cut(F.interpolate(images_B3HW, size, mode="bicubic", antialias=True))
        return images_B3HW

    def _crop(self, images_B3HW: Tensor) -> Tensor:
        rows, columns = self.crop
        top, left = (images_B3HW.shape[-2] - rows) // 2, (images_B3HW.shape[-1] - columns) // 2
        return images_B3HW[..., top : top + rows, left : left + columns]


def _cut(images_B3HW: Tensor) -> Tensor:
    """Into [0, 1], straight through for the gradient.

    Bicubic overshoots at edges. Where PIL writes bytes it is cut, after each of the two passes (columns
    first), so that no encoder was trained on it; but a gradient must still reach those pixels.
    """
    return images_B3HW + (images_B3HW.clamp(0, 1) - images_B3HW).detach()


def _short_side(size: int | dict[str, int]) -> int:
    return size if isinstance(size, int) else size["shortest_edge"]


def _crop(size: int | dict[str, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size["height"], size["width"])
