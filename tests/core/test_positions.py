"""Waves of a grid: every place has its own, neighbours have similar ones."""

import torch

from swiftmask.core.positions import grid_waves


def test_every_place_differs_and_neighbours_are_nearest() -> None:
    waves_LD = grid_waves(6, 32)
    assert waves_LD.shape == (36, 32)
    distance_LL = torch.cdist(waves_LD, waves_LD).fill_diagonal_(torch.inf)
    assert distance_LL.min() > 0.1
    row_L, column_L = torch.arange(36) // 6, torch.arange(36) % 6
    nearest_L = distance_LL.argmin(1)
    step_L = (row_L - row_L[nearest_L]).abs() + (column_L - column_L[nearest_L]).abs()
    assert (step_L == 1).all()


def test_a_width_that_is_no_multiple_of_four() -> None:
    assert grid_waves(3, 10).shape == (9, 10)
