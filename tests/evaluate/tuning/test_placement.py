"""Placements: exact counts, and the dynamic program against every placement there is."""

from itertools import combinations

import pytest
import torch

from swiftmask.evaluate.tuning.placement import (
    front_loaded_full_steps,
    optimised_full_steps,
)


def _drift(num_steps: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(
        num_steps, num_steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def _drift_by_hand(drift_SS: torch.Tensor, full_steps: list[int]) -> float:
    """Of every step that is not full, from the last full one."""
    total = 0.0
    for step in range(len(drift_SS)):
        last = max(index for index in full_steps if index <= step)
        total += 0.0 if last == step else float(drift_SS[last, step])
    return total


@pytest.mark.parametrize("num_steps", [1, 2, 5, 8])
def test_the_optimised_placement_is_the_best_of_all(num_steps: int) -> None:
    drift_SS = _drift(num_steps)
    for num_full in range(1, num_steps + 1):
        placed = optimised_full_steps(drift_SS, num_full)
        every = [[0, *others] for others in combinations(range(1, num_steps), num_full - 1)]
        least = min(_drift_by_hand(drift_SS, other) for other in every)
        assert placed in every
        assert _drift_by_hand(drift_SS, placed) == pytest.approx(least)


def test_full_steps_go_where_features_change() -> None:
    drift_SS = torch.zeros(8, 8)
    drift_SS[:5, 5:] = 1  # what is known before step 5 says nothing from there on
    assert optimised_full_steps(drift_SS, 2) == [0, 5]


def test_only_later_steps_are_read() -> None:
    drift_SS = _drift(6)
    spoilt_SS = drift_SS.triu(1) + torch.full((6, 6), 9.0).tril()
    assert optimised_full_steps(spoilt_SS, 3) == optimised_full_steps(drift_SS, 3)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 16, 33])
def test_front_loaded_placements(num_steps: int) -> None:
    for num_full in range(1, num_steps + 1):
        placed = front_loaded_full_steps(num_steps, num_full)
        assert len(set(placed)) == num_full
        assert placed == sorted(placed)
        assert placed[0] == 0
        assert placed[-1] < num_steps
    assert front_loaded_full_steps(16, 4) == [0, 1, 4, 9]


def test_mistakes_are_told() -> None:
    for place in (lambda n: optimised_full_steps(_drift(4), n), lambda n: front_loaded_full_steps(4, n)):
        for num_full in (0, 5):
            with pytest.raises(ValueError, match=r"between 1 and the number of steps \(4\)"):
                place(num_full)
    with pytest.raises(ValueError, match="every pair of steps"):
        optimised_full_steps(torch.zeros(3, 4), 2)
    with pytest.raises(ValueError, match="finite"):
        optimised_full_steps(torch.full((3, 3), torch.nan), 2)
