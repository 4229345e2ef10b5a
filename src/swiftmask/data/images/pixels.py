"""Images in [0, 1] as 8-bit values (the one rule of rounding), and grey where they are not finished."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def to_bytes(images: Tensor) -> Tensor:
    """Values of images of any shape, clamped to [0, 1], as the nearest uint8 of 0 to 255."""
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def to_pil(images_B3HW: Tensor) -> list[Image.Image]:
    """Images [B, 3, H, W] in [0, 1] as 8-bit PIL images."""
    pixels_BHW3 = to_bytes(images_B3HW).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(pixels)) for pixels in pixels_BHW3]


def grey_where(masked_Bhw: Tensor, images_B3HW: Tensor) -> Tensor:
    """The images with the cells of a grid, bool [B, rows, columns], in the grey between black and white."""
    grid_B1hw = masked_Bhw[:, None].to(images_B3HW.dtype)
    grey_B1HW = F.interpolate(grid_B1hw, size=images_B3HW.shape[2:], mode="nearest")
    return images_B3HW * (1 - grey_B1HW) + 0.5 * grey_B1HW
