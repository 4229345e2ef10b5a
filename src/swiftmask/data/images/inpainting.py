"""What inpainting and outpainting start from: the pixels of a picture, and which of them are drawn anew."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from swiftmask.core.files import first_line

_WHITE = 128
"""Grey value from which a pixel of a mask counts as white."""


class StartPicture(NamedTuple):
    """Pixels [3, H, W] in [0, 1], and which of the tokens behind them are drawn anew: bool [L]."""

    image_3HW: Tensor
    drawn_L: Tensor


def open_picture(path: str | Path) -> Image.Image:
    """An image file. Errors: FileNotFoundError; ValueError if it cannot be read."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such image file: {path}")
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {path} ({first_line(error)})") from error


def start_picture(
    image: Image.Image, mask: Image.Image | None, *, size: tuple[int, int], grid: tuple[int, int]
) -> StartPicture:
    """An image, and around it what is missing to `size`.

    A smaller image lies in the middle, on the grid of tokens; the pixels around it repeat its edge, so that
    an encoder sees nothing foreign there, and are drawn anew. A token is drawn anew if any of its pixels is.

    Args:
        mask: as large as the image; white is drawn anew.
        size: height and width of the pictures that a model draws, in pixels.
        grid: rows and columns of its tokens.

    Errors: ValueError for an image that is too large, a mask of another size, or if everything or nothing is
        left to draw.
    """
    _require_fit(image, mask, size)
    room = [whole - side for whole, side in zip(size, (image.height, image.width), strict=True)]
    top, left = (_first_token(*place) for place in zip(room, size, grid, strict=True))
    edges = (left, room[1] - left, top, room[0] - top)
    image_3HW = F.pad(_pixels(image)[None], edges, mode="replicate")[0]
    drawn_HW = F.pad(_white(mask, image), edges, value=1.0)
    drawn_L = F.adaptive_max_pool2d(drawn_HW[None, None], grid).flatten() > 0
    if not drawn_L.any():
        raise ValueError(
            "nothing is left to draw: give a mask with white where to draw anew, or an image smaller than "
            f"the picture ({_text(size)})"
        )
    if drawn_L.all():
        raise ValueError("the mask leaves no token of the image as it is: make part of it black (kept)")
    return StartPicture(image_3HW, drawn_L)


def _require_fit(image: Image.Image, mask: Image.Image | None, size: tuple[int, int]) -> None:
    shape = (image.height, image.width)
    if any(side > whole for side, whole in zip(shape, size, strict=True)):
        raise ValueError(
            f"the image is {_text(shape)} (height x width), larger than the picture of {_text(size)}: make "
            "it smaller, or draw a larger picture"
        )
    if mask is not None and mask.size != image.size:
        raise ValueError(
            f"the mask is {_text((mask.height, mask.width))} (height x width), the image {_text(shape)}: "
            "make them of one size"
        )


def _first_token(room: int, side: int, num_tokens: int) -> int:
    """Pixels before an image in the middle, with its edge where a token begins."""
    return -(-round(room / 2 * num_tokens / side) * side // num_tokens)


def _pixels(image: Image.Image) -> Tensor:
    """[3, h, w] in [0, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def _white(mask: Image.Image | None, image: Image.Image) -> Tensor:
    """[h, w], 1 where to draw anew."""
    if mask is None:
        return torch.zeros(image.height, image.width)
    return (torch.from_numpy(np.array(mask.convert("L"))) >= _WHITE).float()


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
