"""Images cropped to squares as ADM (Dhariwal and Nichol, arXiv 2105.05233) does.

This is the preprocessing of MAR (arXiv 2406.11838) and of everything else measured against ADM's reference
statistics.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swiftmask.data.images.decode import Decoding, decode_image


class Cropped(NamedTuple):
    """A square of an image, uint8 [3, size, size], and what was done to it before (decode.py)."""

    pixels_3HW: Tensor
    changes: tuple[str, ...]


def read_cropped(content: bytes, name: str, size: int, decoding: Decoding) -> Cropped:
    """An image file's bytes. Errors: ValueError with `name`, and what is wrong with the file."""
    picture = decode_image(content, name, decoding)
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
