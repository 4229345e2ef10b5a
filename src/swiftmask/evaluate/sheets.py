"""Pictures side by side as one PNG, and what a canvas looks like before it is finished."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.types import Canvas

_GAP = 4
_HIDDEN = 0.55
"""White pixels between pictures, and the grey of what is not decided yet."""


def side_by_side(rows_B3HW: Sequence[Tensor], *, scale: int = 2) -> bytes:
    """One line of pictures [B, 3, H, W] per row of the comparison, enlarged `scale` times without smoothing.

    Errors: ValueError if the rows differ in the number or size of their pictures.
    """
    if len({tuple(row.shape) for row in rows_B3HW}) != 1:
        raise ValueError(f"rows need equal images, got {[tuple(row.shape) for row in rows_B3HW]}")
    count, _, height, width = rows_B3HW[0].shape
    tall, wide = height * scale + _GAP, width * scale + _GAP
    sheet = np.full((len(rows_B3HW) * tall + _GAP, count * wide + _GAP, 3), 255, np.uint8)
    for index, images_B3HW in enumerate(rows_B3HW):
        for column, image_HW3 in enumerate(_pixels(images_B3HW)):
            enlarged = image_HW3.repeat(scale, axis=0).repeat(scale, axis=1)
            top, left = _GAP + index * tall, _GAP + column * wide
            sheet[top : top + tall - _GAP, left : left + wide - _GAP] = enlarged
    return _png(sheet)


def canvas_picture(model: MaskedGenerator, canvas: Canvas) -> Tensor:
    """The first picture of a canvas, undecided positions grey: [3, H, W]."""
    tokens_1L, masked_1L = canvas.tokens_BL[:1], canvas.masked_BL[:1]
    where = masked_1L if tokens_1L.ndim == 2 else masked_1L[..., None]
    image_3HW = model.to_pixels(tokens_1L.masked_fill(where, 0))[0].float().cpu()  # the mask id is no code
    masked_hw = masked_1L.reshape(model.spec.grid).cpu()
    rows_H, columns_W = (
        (torch.arange(pixels) * tokens) // pixels
        for pixels, tokens in zip(image_3HW.shape[1:], model.spec.grid, strict=True)
    )
    return image_3HW.masked_fill(masked_hw[rows_H][:, columns_W], _HIDDEN)


def _pixels(images_B3HW: Tensor) -> np.ndarray:
    return (images_B3HW.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _png(pixels_HW3: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
