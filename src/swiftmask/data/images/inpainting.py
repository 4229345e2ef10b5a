"""What inpainting and outpainting start from: pixels of an image, and which of them are generated anew."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from swiftmask.data.images.decode import numbers_of, to_rgb

_FAINT = 1 / 8
"""Of all that a mask could hold: a range below this is noise, unless it begins at 0 and has two values."""


class StartImage(NamedTuple):
    """What an image starts from.

    Attributes:
        image_3HW: pixels in [0, 1].
        drawn_L: which of the tokens behind them are generated anew.
        kept_HW: which pixels the finished image takes over as they are. A token that is generated anew may
            have some of them.
    """

    image_3HW: Tensor
    drawn_L: Tensor
    kept_HW: Tensor

    @property
    def num_drawn(self) -> int:
        """Tokens that are generated anew."""
        return int(self.drawn_L.sum())


def paste_kept(images_B3HW: Tensor, starts: Sequence[StartImage]) -> Tensor:
    """Finished images with the kept pixels of their start images, one each or none at all, unchanged."""
    if not starts:
        return images_B3HW
    device, dtype = images_B3HW.device, images_B3HW.dtype
    kept_BHW = torch.stack([start.kept_HW for start in starts]).to(device)
    originals_B3HW = torch.stack([start.image_3HW for start in starts]).to(device, dtype)
    return torch.where(kept_BHW[:, None], originals_B3HW, images_B3HW)


def start_image(
    image: Image.Image, mask: Image.Image | None, *, size: tuple[int, int], grid: tuple[int, int]
) -> StartImage:
    """An image, and around it what is missing to `size`.

    A smaller image lies in the middle, on the grid of tokens; the pixels around it repeat its edge, so that
    an encoder sees nothing foreign there, and are generated anew. So is a token with any such pixel.

    Args:
        image: of any mode (decode.py).
        mask: as large as the image; white is generated anew (`white_of`).
        size: height and width of the images that a model generates, in pixels.
        grid: rows and columns of its tokens.

    Errors: ValueError for an image that is too large, a mask of another size or neither black nor white, or
        if everything or nothing is left to generate.
    """
    image = to_rgb(image).image
    white_hw = np.zeros((image.height, image.width), bool) if mask is None else white_of(mask)
    _require_fit(image, None if mask is None else white_hw, size)
    room = [whole - side for whole, side in zip(size, (image.height, image.width), strict=True)]
    top, left = (_first_token(*place) for place in zip(room, size, grid, strict=True))
    edges = (left, room[1] - left, top, room[0] - top)
    pixels_3hw = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    image_3HW = F.pad(pixels_3hw[None], edges, mode="replicate")[0]
    drawn_HW = F.pad(torch.from_numpy(white_hw).float(), edges, value=1.0)
    drawn_L = F.adaptive_max_pool2d(drawn_HW[None, None], grid).flatten() > 0
    if not drawn_L.any():
        raise ValueError(
            f"nothing is left to generate{_range_of(mask)}: give a mask with white where to generate anew, "
            f"or an image smaller than that of the model ({_text(size)})"
        )
    if drawn_L.all():
        if mask is None:
            raise ValueError(
                f"the image of {_text((image.height, image.width))} fills no token: make it larger"
            )
        raise ValueError(
            f"the mask leaves no token of the image as it is{_range_of(mask)}: make part of it black (kept)"
        )
    return StartImage(image_3HW, drawn_L, drawn_HW == 0)


def white_of(mask: Image.Image) -> np.ndarray:
    """Where a mask is white, bool [H, W]: above the middle of the range of its values.

    So 0 and 1 are read as 0 and 255 are, and so are 16 bits, real values, palettes, and images of one bit.
    Transparent places are black. A mask of one value is white all over, unless the value is 0.

    Errors: ValueError for values that are neither black and white nor grey: a narrow range of several, or one
    that is narrow and far from 0, such as the noise of a JPEG.
    """
    values_HW, most = numbers_of(mask)
    low, high = float(values_HW.min()), float(values_HW.max())
    if not np.isfinite(values_HW).all() or low < 0:
        raise ValueError(f"the values of the mask go from {low:g} to {high:g}: expected 0 (kept) to {most:g}")
    if low == high:
        return values_HW > 0
    two_from_zero = low == 0 and np.isin(values_HW, (low, high)).all()
    if high - low < _FAINT * most and not two_from_zero:
        raise ValueError(
            f"the values of the mask go from {low:g} to {high:g}, of {most:g}: expected black (0) where to "
            f"keep and white where to generate anew, as in 0 and 1, or 0 and {most:g}"
        )
    return values_HW > (low + high) / 2


def _range_of(mask: Image.Image | None) -> str:
    if mask is None:
        return ""
    values_HW, _ = numbers_of(mask)
    transparent = ", transparent counting as 0" if mask.has_transparency_data else ""
    return f" (the values of the mask go from {values_HW.min():g} to {values_HW.max():g}{transparent})"


def _require_fit(image: Image.Image, white_hw: np.ndarray | None, size: tuple[int, int]) -> None:
    shape = (image.height, image.width)
    if any(side > whole for side, whole in zip(shape, size, strict=True)):
        raise ValueError(
            f"the image is {_text(shape)} (height x width), larger than the model's, {_text(size)}: make "
            "it smaller, or generate larger images"
        )
    if white_hw is not None and white_hw.shape != shape:
        raise ValueError(
            f"the mask is {_text(white_hw.shape)} (height x width), the image {_text(shape)}: "
            "make them of one size"
        )


def _first_token(room: int, side: int, num_tokens: int) -> int:
    """Pixels before an image in the middle, with its edge where a token begins."""
    return -(-round(room / 2 * num_tokens / side) * side // num_tokens)


def _text(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"
