"""Images side by side as one PNG, and what a canvas looks like before it is finished."""

from collections.abc import Sequence
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.types import Canvas
from swiftmask.data.images.pixels import to_bytes

_GAP = 4
_HIDDEN = 0.55
"""White pixels between images, and the grey of what is not decided yet."""


def side_by_side(rows_B3HW: Sequence[Tensor], *, scale: int = 2) -> bytes:
    """One line of images [B, 3, H, W] per row of the comparison, enlarged `scale` times without smoothing.

    Errors: ValueError if the rows differ in the number or size of their images.
    """
    if len({tuple(row.shape) for row in rows_B3HW}) != 1:
        raise ValueError(f"rows need equal images, got {[tuple(row.shape) for row in rows_B3HW]}")
    pixels_RB3HW = to_bytes(torch.stack([row.cpu() for row in rows_B3HW]))
    enlarged_RB3HW = pixels_RB3HW.repeat_interleave(scale, dim=3).repeat_interleave(scale, dim=4)
    spaced_RHBW3 = F.pad(enlarged_RB3HW, (_GAP, 0, _GAP, 0), value=255).permute(0, 3, 1, 4, 2)
    sheet_HW3 = F.pad(spaced_RHBW3.flatten(2, 3).flatten(0, 1), (0, 0, 0, _GAP, 0, _GAP), value=255)
    buffer = BytesIO()
    Image.fromarray(sheet_HW3.numpy()).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def canvas_image(model: MaskedGenerator, canvas: Canvas) -> Tensor:
    """The first image of a canvas, undecided positions grey: [3, H, W]."""
    tokens_1L, masked_1L = canvas.tokens_BL[:1], canvas.masked_BL[:1]
    where = masked_1L if tokens_1L.ndim == 2 else masked_1L[..., None]
    image_3HW = model.to_pixels(tokens_1L.masked_fill(where, 0))[0].float().cpu()  # the mask id is no code
    masked_hw = masked_1L.reshape(model.spec.grid).cpu()
    rows_H, columns_W = (
        (torch.arange(pixels) * tokens) // pixels
        for pixels, tokens in zip(image_3HW.shape[1:], model.spec.grid, strict=True)
    )
    return image_3HW.masked_fill(masked_hw[rows_H][:, columns_W], _HIDDEN)
