"""The generating parameters of Scenes, drawn from integer seeds.

Every draw is a counter-based hash of (seed, draw index), so the image of a seed is the same in any batch,
on any device and in any order; a `torch.Generator` per image would be slow and one per batch would depend
on the batch. Placement never rejects: one object lies anywhere, two share the image by halves, three take
three of its quadrants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SIZES = ("small", "large")
PATTERNS = ("plain", "striped", "checked", "dotted")
RELATIONS = ("left of", "right of", "above", "below")
MAX_OBJECTS = 3
NUM_CLASSES = len(SHAPES) * len(COLOURS)
CLASS_NAMES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)

_MASK = 0xFFFFFFFF
_MARGIN = 0.5 / 64  # keeps anti-aliased edges of neighbours apart
LATTICE = 12
_EXACT_RADII = (9.25 / 64, 14.25 / 64)
_SMALL_RADIUS = (8.5 / 64, 10 / 64)
_LARGE_RADIUS = (13.5 / 64, 15 / 64)
_PERIOD = 1 / 4  # of a pattern; coarse enough for a grid of 12x12 tokens to draw
_NUM_PHASES = 3
_MAX_TILT = 0.12  # radians; every shape still fits the box of its radius
_MAX_SLOPE = 0.6  # of two objects, the minor centre difference over the dominant one


@dataclass(frozen=True, slots=True)
class Scenes:
    """What `B` images show. Lengths are shares of the image's side; empty object slots hold -1 (or 0.0).

    `shape_BO`, `colour_BO`, `size_BO` index `SHAPES`, `COLOURS`, `SIZES`; `pattern_B`, `background_B` index
    `PATTERNS`, `COLOURS`. `x_BO` runs to the right, `y_BO` downwards, angles are radians.
    """

    count_B: Tensor
    shape_BO: Tensor
    colour_BO: Tensor
    size_BO: Tensor
    x_BO: Tensor
    y_BO: Tensor
    radius_BO: Tensor
    tilt_BO: Tensor
    pattern_B: Tensor
    background_B: Tensor
    phase_BX: Tensor
    angle_B: Tensor
    period_B: Tensor

    def __len__(self) -> int:
        return self.count_B.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device | str) -> Scenes:
        return Scenes(*(getattr(self, field.name).to(device) for field in fields(self)))


class _Draw(IntEnum):
    """Index of the first draw of each kind; gaps leave one draw per object."""

    COUNT = 0
    BACKGROUND = 1
    PATTERN = 2
    ANGLE = 3
    PHASE = 5
    LAYOUT = 8
    KIND = 10
    SIZE = 14
    RADIUS = 18
    TILT = 22
    X = 26
    Y = 30
    NUM = 34


def concat_scenes(parts: Sequence[Scenes]) -> Scenes:
    """One batch out of several."""
    return Scenes(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Scenes)))


def sample_scenes(seeds: Sequence[int] | Tensor, *, num_objects: int | None = None) -> Scenes:
    """The scenes of `seeds`: one to three objects each, or exactly `num_objects`."""
    if num_objects is not None and not 1 <= num_objects <= MAX_OBJECTS:
        raise ValueError(f"num_objects must be 1 to {MAX_OBJECTS}, got {num_objects}")
    draws_BN = _uniform(_as_seeds(seeds))
    if num_objects is None:
        count_B = 1 + _integer(draws_BN[:, _Draw.COUNT], MAX_OBJECTS)
    else:
        count_B = torch.full_like(draws_BN[:, 0], num_objects, dtype=torch.long)
    return _scenes_from_draws(draws_BN, count_B)


def class_attributes(labels_B: Tensor) -> Tensor:
    """[B, 2]: the shape and the colour that each class names."""
    return torch.stack([labels_B // len(COLOURS), labels_B % len(COLOURS)], dim=1)


def class_scenes(labels_B: Tensor, seeds: Sequence[int] | Tensor) -> Scenes:
    """One object of the class's shape and colour per image; the rest comes from the seed.

    Simpler than captioned images, so that a small model can learn them in an hour: upright objects of two
    exact radii on a lattice, plain backgrounds.
    """
    seeds_B = _as_seeds(seeds).to(labels_B.device)
    if labels_B.shape != seeds_B.shape:
        raise ValueError(
            f"one seed per label: got {tuple(labels_B.shape)} labels, {tuple(seeds_B.shape)} seeds"
        )
    if len(labels_B) and not 0 <= int(labels_B.min()) <= int(labels_B.max()) < NUM_CLASSES:
        raise ValueError(f"labels must lie in 0..{NUM_CLASSES - 1}, got {labels_B.min()}..{labels_B.max()}")
    draws_BN = _uniform(seeds_B)
    scenes = _scenes_from_draws(draws_BN, torch.ones_like(labels_B, dtype=torch.long))
    shape_BO, colour_BO = scenes.shape_BO.clone(), scenes.colour_BO.clone()
    shape_BO[:, 0], colour_BO[:, 0] = class_attributes(labels_B).unbind(1)
    background_B = _integer(draws_BN[:, _Draw.BACKGROUND], len(COLOURS) - 1)
    background_B = background_B + (background_B >= colour_BO[:, 0])
    simple = _simplified(scenes)
    return replace(simple, shape_BO=shape_BO, colour_BO=colour_BO, background_B=background_B)


def simple_scenes(seeds: Sequence[int] | Tensor) -> Scenes:
    """Two or three objects, as simple as those of class pictures."""
    draws_BN = _uniform(_as_seeds(seeds))
    count_B = 2 + _integer(draws_BN[:, _Draw.COUNT], MAX_OBJECTS - 1)
    return _simplified(_scenes_from_draws(draws_BN, count_B, exact_radii=True))


def _simplified(scenes: Scenes) -> Scenes:
    """Upright objects of exact radii on the lattice, before a plain background.

    What was placed by these radii stays apart: the nearest lattice points are no nearer to the edges of its
    part of the image.
    """
    radius_BO = _exact_radius(scenes.size_BO).masked_fill(scenes.size_BO < 0, 0.0)
    return replace(
        scenes,
        radius_BO=radius_BO,
        x_BO=_on_lattice(scenes.x_BO, radius_BO),
        y_BO=_on_lattice(scenes.y_BO, radius_BO),
        tilt_BO=torch.zeros_like(scenes.tilt_BO),
        pattern_B=torch.full_like(scenes.pattern_B, PATTERNS.index("plain")),
    )


def _on_lattice(centre_BO: Tensor, radius_BO: Tensor) -> Tensor:
    """The lattice point nearest to each centre at which the object still lies inside; empty slots stay 0."""
    lowest_BO = ((radius_BO + _MARGIN) * LATTICE).ceil()
    step_BO = (centre_BO * LATTICE).round()
    inside_BO = torch.minimum(torch.maximum(step_BO, lowest_BO), LATTICE - lowest_BO)
    return (inside_BO / LATTICE).masked_fill(radius_BO == 0, 0.0)


def relation(dx_B: Tensor, dy_B: Tensor) -> Tensor:
    """Index into `RELATIONS` of a first object to a second that lies (dx, dy) away from it."""
    horizontal_B = torch.where(dx_B > 0, 0, 1)
    vertical_B = torch.where(dy_B > 0, 2, 3)
    return torch.where(dx_B.abs() >= dy_B.abs(), horizontal_B, vertical_B)


def _as_seeds(seeds: Sequence[int] | Tensor) -> Tensor:
    if isinstance(seeds, Tensor):
        return seeds.long()
    return torch.tensor([int(seed) & (2**63 - 1) for seed in seeds], dtype=torch.long)


def _mix(value: Tensor) -> Tensor:
    """A 32-bit integer hash (lowbias32) in int64; products wrap, and only their low 32 bits are kept."""
    value = value & _MASK
    value = ((value ^ (value >> 16)) * 0x7FEB352D) & _MASK
    value = ((value ^ (value >> 15)) * 0x846CA68B) & _MASK
    return value ^ (value >> 16)


def _uniform(seeds_B: Tensor) -> Tensor:
    """`_Draw.NUM` numbers in [0, 1) for each seed."""
    key_B = _mix(_mix(seeds_B & _MASK) + 0x9E3779B9 + (seeds_B >> 32))
    index_N = torch.arange(_Draw.NUM, device=seeds_B.device)
    bits_BN = _mix(key_B[:, None] ^ _mix((index_N + 1) * 0x85EBCA6B))
    return (bits_BN >> 8).float() / 2**24


def _integer(uniform: Tensor, num_values: int) -> Tensor:
    return (uniform * num_values).long().clamp(max=num_values - 1)


def _scenes_from_draws(draws_BN: Tensor, count_B: Tensor, *, exact_radii: bool = False) -> Scenes:
    slots_O = torch.arange(MAX_OBJECTS, device=draws_BN.device)
    empty_BO = slots_O >= count_B[:, None]
    background_B = _integer(draws_BN[:, _Draw.BACKGROUND], len(COLOURS))
    shape_BO, colour_BO = _distinct_objects(_per_object(draws_BN, _Draw.KIND), background_B)
    size_BO = _integer(_per_object(draws_BN, _Draw.SIZE), len(SIZES))
    radius_BO = _radius(size_BO, _per_object(draws_BN, _Draw.RADIUS))
    if exact_radii:
        radius_BO = _exact_radius(size_BO)
    x_BO, y_BO = _place(draws_BN, count_B, radius_BO)
    tilt_BO = (2 * _per_object(draws_BN, _Draw.TILT) - 1) * _MAX_TILT
    return Scenes(
        count_B=count_B,
        shape_BO=shape_BO.masked_fill(empty_BO, -1),
        colour_BO=colour_BO.masked_fill(empty_BO, -1),
        size_BO=size_BO.masked_fill(empty_BO, -1),
        x_BO=x_BO.masked_fill(empty_BO, 0.0),
        y_BO=y_BO.masked_fill(empty_BO, 0.0),
        radius_BO=radius_BO.masked_fill(empty_BO, 0.0),
        tilt_BO=tilt_BO.masked_fill(empty_BO, 0.0),
        pattern_B=_integer(draws_BN[:, _Draw.PATTERN], len(PATTERNS)),
        background_B=background_B,
        phase_BX=_integer(draws_BN[:, _Draw.PHASE : _Draw.PHASE + 2], _NUM_PHASES) / _NUM_PHASES,
        angle_B=_integer(draws_BN[:, _Draw.ANGLE], 4) * (torch.pi / 4),
        period_B=torch.full_like(draws_BN[:, 0], _PERIOD),
    )


def _per_object(draws_BN: Tensor, first: _Draw) -> Tensor:
    return draws_BN[:, first : first + MAX_OBJECTS]


def _distinct_objects(kind_BO: Tensor, background_B: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and colour of three objects: no two alike, none in the background's colour."""
    num_colours = len(COLOURS) - 1
    num_kinds = len(SHAPES) * num_colours
    first_B = _integer(kind_BO[:, 0], num_kinds)
    second_B = _integer(kind_BO[:, 1], num_kinds - 1)
    second_B = second_B + (second_B >= first_B)
    third_B = _integer(kind_BO[:, 2], num_kinds - 2)
    third_B = third_B + (third_B >= torch.minimum(first_B, second_B))
    third_B = third_B + (third_B >= torch.maximum(first_B, second_B))
    kinds_BO = torch.stack([first_B, second_B, third_B], dim=1)
    colour_BO = kinds_BO % num_colours
    return kinds_BO // num_colours, colour_BO + (colour_BO >= background_B[:, None])


def _radius(size_BO: Tensor, uniform_BO: Tensor) -> Tensor:
    small_BO = _SMALL_RADIUS[0] + uniform_BO * (_SMALL_RADIUS[1] - _SMALL_RADIUS[0])
    large_BO = _LARGE_RADIUS[0] + uniform_BO * (_LARGE_RADIUS[1] - _LARGE_RADIUS[0])
    return torch.where(size_BO == 0, small_BO, large_BO)


def _exact_radius(size_BO: Tensor) -> Tensor:
    return torch.where(size_BO == 0, *_EXACT_RADII)


def _place(draws_BN: Tensor, count_B: Tensor, radius_BO: Tensor) -> tuple[Tensor, Tensor]:
    """Centres `x_BO, y_BO` of objects that do not overlap, whatever their radii."""
    reach_BO = radius_BO + _MARGIN
    u_BO, v_BO = _per_object(draws_BN, _Draw.X), _per_object(draws_BN, _Draw.Y)
    quarter_B, half_B = draws_BN[:, _Draw.LAYOUT], draws_BN[:, _Draw.LAYOUT + 1]
    one_x_BO, one_y_BO = _within(u_BO, reach_BO, 0.0, 1.0), _within(v_BO, reach_BO, 0.0, 1.0)
    two_x_BO, two_y_BO = _place_two(u_BO, v_BO, reach_BO, quarter_B)
    cell_BO = _three_cells(quarter_B, half_B)
    three_x_BO = _within(u_BO, reach_BO, (cell_BO % 2) / 2, (cell_BO % 2) / 2 + 0.5)
    three_y_BO = _within(v_BO, reach_BO, (cell_BO // 2) / 2, (cell_BO // 2) / 2 + 0.5)
    count_BO = count_B[:, None]
    x_BO = torch.where(count_BO == 1, one_x_BO, torch.where(count_BO == 2, two_x_BO, three_x_BO))
    y_BO = torch.where(count_BO == 1, one_y_BO, torch.where(count_BO == 2, two_y_BO, three_y_BO))
    return x_BO, y_BO


def _within(uniform_BO: Tensor, reach_BO: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    return low + reach_BO + uniform_BO * (high - low - 2 * reach_BO)


def _place_two(u_BO: Tensor, v_BO: Tensor, reach_BO: Tensor, layout_B: Tensor) -> tuple[Tensor, Tensor]:
    """One object in each half along an axis, close across it, so that their relation is never in doubt."""
    layout_B = _integer(layout_B, 4)
    slots_O = torch.arange(MAX_OBJECTS, device=u_BO.device)
    half_BO = (slots_O + layout_B[:, None] % 2) % 2
    along_BO = _within(u_BO, reach_BO, half_BO / 2, half_BO / 2 + 0.5)
    across_BO = _within(v_BO, reach_BO, 0.0, 1.0)
    limit_B = _MAX_SLOPE * (along_BO[:, 1] - along_BO[:, 0])
    second_B = across_BO[:, 0] + (2 * v_BO[:, 1] - 1) * limit_B
    second_B = torch.minimum(torch.maximum(second_B, reach_BO[:, 1]), 1 - reach_BO[:, 1])
    across_BO = torch.stack([across_BO[:, 0], second_B, across_BO[:, 2]], dim=1)
    horizontal_BO = layout_B[:, None] < 2
    return torch.where(horizontal_BO, along_BO, across_BO), torch.where(horizontal_BO, across_BO, along_BO)


def _three_cells(quarter_B: Tensor, half_B: Tensor) -> Tensor:
    """Three different quadrants of the image, in any order."""
    first_B = _integer(quarter_B, 4)
    step_B = 1 + _integer(half_B, 3)
    other_B = 1 + (step_B + _integer(quarter_B * 4 % 1, 2)) % 3
    return torch.stack([first_B, (first_B + step_B) % 4, (first_B + other_B) % 4], dim=1)
