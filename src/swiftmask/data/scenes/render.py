"""Pixels of Scenes: signed distances to every edge, so images are anti-aliased and sharp at any size.

Distances are exact near an edge and only bounded far from it, which is all that the one-pixel coverage ramp
reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from swiftmask.data.scenes.world import MAX_OBJECTS, SHAPES, Scenes

_OBJECT_RGB = (
    (0.88, 0.08, 0.12),
    (1.00, 0.52, 0.00),
    (1.00, 0.92, 0.08),
    (0.05, 0.70, 0.20),
    (0.08, 0.25, 0.92),
    (0.58, 0.10, 0.82),
    (1.00, 1.00, 1.00),
    (0.02, 0.02, 0.02),
)
_BACKGROUND_RGB = (
    ((0.72, 0.47, 0.47), (0.60, 0.35, 0.36)),
    ((0.84, 0.66, 0.46), (0.73, 0.54, 0.35)),
    ((0.86, 0.84, 0.58), (0.75, 0.72, 0.44)),
    ((0.52, 0.68, 0.52), (0.40, 0.56, 0.41)),
    ((0.50, 0.60, 0.76), (0.38, 0.47, 0.64)),
    ((0.66, 0.54, 0.74), (0.54, 0.42, 0.62)),
    ((0.88, 0.88, 0.88), (0.75, 0.75, 0.76)),
    ((0.34, 0.34, 0.35), (0.22, 0.22, 0.23)),
)
_CHUNK = 64  # images at a time, so that one plane stays in the cache


def render(scenes: Scenes, size: int = 64) -> Tensor:
    """`images_B3HW`, float32 in [0, 1], `size` pixels high and wide."""
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    images_B3HW = torch.empty(len(scenes), 3, size, size, device=scenes.count_B.device)
    for start in range(0, len(scenes), _CHUNK):
        _render_chunk(scenes[start : start + _CHUNK], images_B3HW[start : start + _CHUNK])
    return images_B3HW


def _render_chunk(scenes: Scenes, images_B3HW: Tensor) -> None:
    size, device = images_B3HW.shape[-1], images_B3HW.device
    pixels_W = (torch.arange(size, device=device) + 0.5) / size
    shades_BT3 = torch.tensor(_BACKGROUND_RGB, device=device)[scenes.background_B]
    pattern_BHW = _pattern(scenes, pixels_W)
    difference_B3 = shades_BT3[:, 1] - shades_BT3[:, 0]
    torch.addcmul(
        shades_BT3[:, 0, :, None, None], pattern_BHW[:, None], difference_B3[..., None, None], out=images_B3HW
    )
    cover_BOHW = _coverage(scenes, pixels_W)
    rgb_BO3 = torch.tensor(_OBJECT_RGB, device=device)[scenes.colour_BO.clamp(min=0)]
    for slot in range(MAX_OBJECTS):
        images_B3HW.lerp_(rgb_BO3[:, slot, :, None, None].expand_as(images_B3HW), cover_BOHW[:, slot, None])


def _pattern(scenes: Scenes, pixels_W: Tensor) -> Tensor:
    """Share of the darker shade at each pixel."""
    size = pixels_W.shape[0]
    pattern_BHW = torch.zeros(len(scenes), size, size, device=pixels_W.device)
    for pattern, function in ((1, _stripes), (2, _checks), (3, _dots)):
        chosen_B = (scenes.pattern_B == pattern).nonzero()[:, 0]
        part = scenes[chosen_B]
        cos_B, sin_B = _column(part.angle_B.cos()), _column(part.angle_B.sin())
        scale_B = 1 / _column(part.period_B)
        u_BHW = (pixels_W * cos_B + pixels_W[:, None] * sin_B) * scale_B + _column(part.phase_BX[:, 0])
        v_BHW = (pixels_W[:, None] * cos_B - pixels_W * sin_B) * scale_B + _column(part.phase_BX[:, 1])
        pattern_BHW[chosen_B] = function(u_BHW, v_BHW, size / scale_B)
    return pattern_BHW


def _column(value_B: Tensor) -> Tensor:
    return value_B[:, None, None]


def _wave(u_BHW: Tensor, pixels_B: Tensor) -> Tensor:
    """Coverage of the first half of every period."""
    return (0.5 + (0.25 - (u_BHW - u_BHW.floor() - 0.5).abs()) * pixels_B).clamp(0, 1)


def _stripes(u_BHW: Tensor, v_BHW: Tensor, pixels_B: Tensor) -> Tensor:
    return _wave(u_BHW, pixels_B)


def _checks(u_BHW: Tensor, v_BHW: Tensor, pixels_B: Tensor) -> Tensor:
    across_BHW, along_BHW = _wave(u_BHW, pixels_B), _wave(v_BHW, pixels_B)
    return across_BHW + along_BHW - 2 * across_BHW * along_BHW


def _dots(u_BHW: Tensor, v_BHW: Tensor, pixels_B: Tensor) -> Tensor:
    distance_BHW = torch.hypot(u_BHW - u_BHW.floor() - 0.5, v_BHW - v_BHW.floor() - 0.5)
    return (0.5 + (0.29 - distance_BHW) * pixels_B).clamp(0, 1)


def _coverage(scenes: Scenes, pixels_W: Tensor) -> Tensor:
    """Share of each pixel that each object covers; objects of one shape are drawn together."""
    size = pixels_W.shape[0]
    cover_NHW = torch.zeros(scenes.shape_BO.numel(), size, size, device=pixels_W.device)
    shape_N = scenes.shape_BO.flatten()
    for shape, name in enumerate(SHAPES):
        chosen_N = (shape_N == shape).nonzero()[:, 0]
        x_N, y_N, radius_N, tilt_N = (
            _column(value_BO.flatten()[chosen_N])
            for value_BO in (scenes.x_BO, scenes.y_BO, scenes.radius_BO, scenes.tilt_BO)
        )
        dx_NHW, dy_NHW = (pixels_W - x_N) / radius_N, (pixels_W[:, None] - y_N) / radius_N
        u_NHW = dx_NHW * tilt_N.cos() + dy_NHW * tilt_N.sin()
        v_NHW = dy_NHW * tilt_N.cos() - dx_NHW * tilt_N.sin()
        cover_NHW[chosen_N] = (0.5 - _DISTANCES[name](u_NHW, v_NHW) * (radius_N * size)).clamp(0, 1)
    return cover_NHW.view(*scenes.shape_BO.shape, size, size)


def _circle(u_NHW: Tensor, v_NHW: Tensor) -> Tensor:
    return torch.hypot(u_NHW, v_NHW) - 0.95


def _square(u_NHW: Tensor, v_NHW: Tensor) -> Tensor:
    return torch.maximum(u_NHW.abs(), v_NHW.abs()) - 0.8


def _triangle(u_NHW: Tensor, v_NHW: Tensor) -> Tensor:
    centred_NHW = v_NHW - 0.2
    side_NHW = u_NHW.abs() * math.cos(math.pi / 6) - centred_NHW * 0.5
    return torch.maximum(side_NHW, centred_NHW) - 0.5


def _star(u_NHW: Tensor, v_NHW: Tensor) -> Tensor:
    """Five points folded into one half point, whose edge is a straight line."""
    inner, sector = 0.44, 2 * math.pi / 5
    angle_NHW = torch.atan2(u_NHW, -v_NHW)
    angle_NHW = (angle_NHW - (angle_NHW / sector).round() * sector).abs()
    length_NHW = torch.hypot(u_NHW, v_NHW)
    along_NHW, across_NHW = length_NHW * angle_NHW.cos(), length_NHW * angle_NHW.sin()
    edge = (inner * math.cos(sector / 2) - 1, inner * math.sin(sector / 2))
    norm = math.hypot(*edge)
    return ((along_NHW - 1) * edge[1] - across_NHW * edge[0]) / norm


def _cross(u_NHW: Tensor, v_NHW: Tensor) -> Tensor:
    u_NHW, v_NHW = u_NHW.abs(), v_NHW.abs()
    return torch.maximum(torch.minimum(u_NHW, v_NHW) - 0.32, torch.maximum(u_NHW, v_NHW) - 0.94)


def _ring(u_NHW: Tensor, v_NHW: Tensor) -> Tensor:
    return (torch.hypot(u_NHW, v_NHW) - 0.72).abs() - 0.23


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}
