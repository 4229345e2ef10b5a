"""Picture sheets: the same seeds side by side, and one canvas filling up. Arrays in, PNG bytes out."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image
from torch import Tensor

_GAP = 4
_HIDDEN = 0.55


def side_by_side(rows_B3HW: Sequence[Tensor], *, scale: int = 2) -> bytes:
    """One line of pictures [B, 3, H, W] per row of the comparison, enlarged `scale` times without smoothing.

    Errors: ValueError if the rows differ in the number or size of their pictures.
    """
    if len({tuple(row.shape) for row in rows_B3HW}) != 1:
        raise ValueError(f"rows need equal pictures, got {[tuple(row.shape) for row in rows_B3HW]}")
    count, _, height, width = rows_B3HW[0].shape
    tall, wide = height * scale + _GAP, width * scale + _GAP
    sheet = np.full((len(rows_B3HW) * tall + _GAP, count * wide + _GAP, 3), 255, np.uint8)
    for index, images_B3HW in enumerate(rows_B3HW):
        for column, image_HW3 in enumerate(_pixels(images_B3HW)):
            enlarged = image_HW3.repeat(scale, axis=0).repeat(scale, axis=1)
            top, left = _GAP + index * tall, _GAP + column * wide
            sheet[top : top + tall - _GAP, left : left + wide - _GAP] = enlarged
    return _png(sheet)


def filmstrip(images_S3HW: Tensor, masked_SL: Tensor, grid: tuple[int, int], *, scale: int = 2) -> bytes:
    """Canvases of one decode, masked tokens (True) greyed out; `images_S3HW` are their pictures."""
    rows, columns = grid
    size = images_S3HW.shape[-2:]
    masked_SHW = masked_SL.reshape(-1, rows, columns)
    row_H = (np.arange(size[0]) * rows) // size[0]
    column_W = (np.arange(size[1]) * columns) // size[1]
    hidden_SHW = masked_SHW[:, row_H][:, :, column_W]
    return side_by_side([images_S3HW.masked_fill(hidden_SHW[:, None], _HIDDEN)], scale=scale)


def _pixels(images_B3HW: Tensor) -> np.ndarray:
    return (images_B3HW.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _png(pixels_HW3: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
