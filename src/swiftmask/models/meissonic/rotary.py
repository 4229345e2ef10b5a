"""Rotary positions on three axes (Su et al., arXiv 2104.09864): text at the origin, image tokens at their
row and column.

The first axis is 0 for every token; it stays because a share of each head's channels belongs to it. Angles
are taken in float64 on the CPU, once for a whole decode, and rotation happens in float32 in any dtype.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines of every row of the sequence, one a pair of channels: float32 [T, P]."""

    cos_TP: Tensor
    sin_TP: Tensor

    def turn(self, x_BNTH: Tensor) -> Tensor:
        """Queries or keys with each pair of neighbouring channels turned by its angle, in their own dtype."""
        pairs_BNTP2 = x_BNTH.float().unflatten(-1, (-1, 2))
        if torch.compiler.is_compiling():  # which generates no code for complex numbers
            even_BNTP, odd_BNTP = pairs_BNTP2.unbind(-1)
            real_BNTP = even_BNTP * self.cos_TP - odd_BNTP * self.sin_TP
            imaginary_BNTP = odd_BNTP * self.cos_TP + even_BNTP * self.sin_TP
            turned_BNTP2 = torch.stack([real_BNTP, imaginary_BNTP], dim=-1)
        else:
            turn_TP = torch.complex(self.cos_TP, self.sin_TP)
            turned_BNTP2 = torch.view_as_real(torch.view_as_complex(pairs_BNTP2) * turn_TP)
        return turned_BNTP2.flatten(-2).to(x_BNTH.dtype)


def places_of(grid: tuple[int, int], num_text: int) -> Tensor:
    """Places of the rows of the sequence, text first, then the grid in raster order: float64 [T, 3]."""
    rows, columns = grid
    places_T3 = torch.zeros(num_text + rows * columns, 3, dtype=torch.float64)
    places_T3[num_text:, 1] = torch.arange(rows).repeat_interleave(columns)
    places_T3[num_text:, 2] = torch.arange(columns).repeat(rows)
    return places_T3


def rotary_at(places_T3: Tensor, axes: Sequence[int], device: torch.device | str = "cpu") -> Rotary:
    """The table of these places, on `device`."""
    angles_TP = angles_of(places_T3.double(), axes)
    return Rotary(angles_TP.cos().float().to(device), angles_TP.sin().float().to(device))


def angles_of(places_X3: Tensor, axes: Sequence[int]) -> Tensor:
    """Angles [..., P] of places [..., 3], in their dtype: for each axis of d channels, `place / theta^(2k/d)`
    of its d / 2 pairs.
    """
    angles = []
    for axis, width in enumerate(axes):
        exponents = torch.arange(0, width, 2, dtype=places_X3.dtype, device=places_X3.device) / width
        angles.append(places_X3[..., axis, None] * _THETA**-exponents)
    return torch.cat(angles, dim=-1)
