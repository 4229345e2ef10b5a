"""Positions of a grid as waves: a start for position tables that are learned."""

import torch
from torch import Tensor


def grid_waves(grid: int, width: int) -> Tensor:
    """Sines and cosines of row and column, half of the width each: [grid * grid, width], in raster order.

    Wavelengths fall geometrically from four grids to two places.
    """
    count = -(-width // 4)
    per_place = torch.logspace(torch.tensor(0.5 / grid).log2(), 0.0, count, base=2)
    angle_PW = torch.pi * torch.arange(grid)[:, None] * per_place
    waves_PX = torch.cat([angle_PW.sin(), angle_PW.cos()], dim=1)
    rows_LX, columns_LX = waves_PX.repeat_interleave(grid, dim=0), waves_PX.repeat(grid, 1)
    return torch.cat([rows_LX, columns_LX], dim=1)[:, :width]
