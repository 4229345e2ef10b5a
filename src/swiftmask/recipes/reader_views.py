"""What a reader sees of an image in training: moved, blurred, off in brightness, noisy, sometimes broken.

Generated images are blurrier and noisier than real ones, and none lies on the same pixels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from swiftmask.core.ranges import check_fields

_TILE = 8
_BLUR_SHARES = (1.0, 1.0, 0.875, 0.75, 0.625)
"""Of the side that fifths of a batch are reduced to, and enlarged from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewConfig:
    """How much the views of an image differ from it.

    Attributes:
        shift: in either direction, as a share of the side.
        zoom: largest factor by which an image is enlarged or reduced.
        turn: degrees in either direction.
        blur: the smallest share of its side that an image is reduced to, and enlarged from.
        noise: of brightness, contrast, colour and pixels, as a multiple of what Scenes' readers see.
    """

    shift: float = 0.08
    zoom: float = 1.25
    turn: float = 8.0
    blur: float = 0.4
    noise: float = 2.0

    def __post_init__(self) -> None:
        check_fields(self)


def views(images_B3HW: Tensor, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """Moved and degraded images in [0, 1]; part of the batch stays sharp.

    Args:
        generator: on the CPU, as the images.
    """
    moved_B3HW = _moved(images_B3HW, config, generator)
    shares = tuple(1 - (1 - config.blur) * i / 4 for i in (0, 0, 1, 2, 4))
    seen_B3HW = degraded(moved_B3HW, generator, blur=shares, strength=config.noise)
    gain_B3 = 1 + 0.05 * config.noise * (2 * torch.rand(len(images_B3HW), 3, generator=generator) - 1)
    return (seen_B3HW * gain_B3[..., None, None]).clamp(0, 1)


def broken(images_B3HW: Tensor, generator: torch.Generator) -> Tensor:
    """Every second image with its tiles shuffled, the others blended with their neighbour."""
    side = images_B3HW.shape[-1]
    tiles_BNL = F.unfold(images_B3HW, _TILE, stride=_TILE)
    order_L = torch.randperm((side // _TILE) ** 2, generator=generator)
    shuffled_B3HW = F.fold(tiles_BNL[..., order_L], side, _TILE, stride=_TILE)
    blended_B3HW = (images_B3HW + images_B3HW.roll(1, dims=0)) / 2
    even_B = torch.arange(len(images_B3HW)) % 2 == 0
    return torch.where(even_B[:, None, None, None], shuffled_B3HW, blended_B3HW)


def degraded(
    images_B3HW: Tensor,
    generator: torch.Generator,
    *,
    blur: tuple[float, ...] = _BLUR_SHARES,
    strength: float = 1.0,
) -> Tensor:
    """Blur, brightness, contrast, fine and blocky noise.

    Args:
        blur: shares of the side that parts of the batch are reduced to, in its order.
        strength: of all but the blur.
    """
    side = images_B3HW.shape[-1]
    parts = []
    for part_B3HW, share in zip(images_B3HW.tensor_split(len(blur)), blur, strict=True):
        size = round(share * side)
        if size != side and len(part_B3HW):
            part_B3HW = F.interpolate(part_B3HW, (size, size), mode="bilinear", antialias=True)
            part_B3HW = F.interpolate(part_B3HW, (side, side), mode="bilinear")
        parts.append(part_B3HW)
    images_B3HW = torch.cat(parts)
    batch = len(images_B3HW)
    amount_B4 = torch.rand(batch, 4, 1, 1, 1, generator=generator)
    contrast_B, light_B = 0.2 * (amount_B4[:, 0] - 0.5), 0.1 * (amount_B4[:, 1] - 0.5)
    images_B3HW = (images_B3HW - 0.5) * (1 + strength * contrast_B) + 0.5 + strength * light_B
    fine_B3HW = torch.randn(images_B3HW.shape, generator=generator)
    blocky_B3HW = torch.randn(batch, 3, side // 4, side // 4, generator=generator)
    blocky_B3HW = F.interpolate(blocky_B3HW, scale_factor=4.0)
    noise_B3HW = 0.04 * amount_B4[:, 2] * fine_B3HW + 0.03 * amount_B4[:, 3] * blocky_B3HW
    return (images_B3HW + strength * noise_B3HW).clamp(0, 1)


def _moved(images_B3HW: Tensor, config: ViewConfig, generator: torch.Generator) -> Tensor:
    """Shifted, zoomed and turned by amounts of their own; the border goes on outside."""
    drawn_B4 = 2 * torch.rand(len(images_B3HW), 4, generator=generator) - 1
    zoom_B = config.zoom ** drawn_B4[:, 0]
    angle_B = math.radians(config.turn) * drawn_B4[:, 1]
    cos_B, sin_B = angle_B.cos() / zoom_B, angle_B.sin() / zoom_B
    shift_B2 = 2 * config.shift * drawn_B4[:, 2:]
    rows = (torch.stack([cos_B, -sin_B, shift_B2[:, 0]], 1), torch.stack([sin_B, cos_B, shift_B2[:, 1]], 1))
    grid_BHW2 = F.affine_grid(torch.stack(rows, 1), list(images_B3HW.shape), align_corners=False)
    return F.grid_sample(images_B3HW, grid_BHW2, padding_mode="border", align_corners=False)
