"""Decoding a batch of tokens to pixels a few images at a time.

A codec's activations at full resolution outweigh everything else of a decode: 3.2 GB for one image of
1024x1024 in float32. Images are independent, so portions bound that memory and change nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor

PIXELS_TOGETHER = 3 * 1024 * 1024
"""Pixels that a codec decodes in one call: three images of 1024x1024, 48 of 256x256.

Not fewer: a CPU's convolutions sum a single image in another order than several, and differ by 1e-6.
"""


def in_portions(decode: Callable[[Tensor], Tensor], tokens_BL: Tensor, *, num_pixels: int) -> Tensor:
    """`decode(tokens_BL)` in portions of even size: `PIXELS_TOGETHER` pixels at most, one image at least.

    Args:
        num_pixels: of one image at the resolution of the codec.
    """
    num_portions = -(-len(tokens_BL) // images_together(num_pixels))
    if num_portions <= 1:
        return decode(tokens_BL)
    return torch.cat([decode(portion) for portion in tokens_BL.tensor_split(num_portions)])


def images_together(num_pixels: int) -> int:
    """How many images of so many pixels are decoded in one call."""
    return max(1, PIXELS_TOGETHER // num_pixels)
