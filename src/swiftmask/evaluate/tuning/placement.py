"""Which steps of a decode should run the backbone, when only some may.

`uniform_full_steps` (core/schedule.py) is MIGM-Shortcut's own placement. Here are two others: one that spends
the full steps early, and the best one for a measured drift, found exactly by dynamic programming.
"""

import torch
from torch import Tensor


def front_loaded_full_steps(num_steps: int, num_full: int) -> list[int]:
    """Full steps dense at first and ever sparser: 0, then `max(previous + 1, round(N (k / F)^2))`.

    Errors: ValueError unless 1 <= num_full <= num_steps.
    """
    _check_count(num_steps, num_full)
    placed = [0]
    for k in range(1, num_full):
        placed.append(max(placed[-1] + 1, round(num_steps * (k / num_full) ** 2)))
    return placed


def optimised_full_steps(drift_SS: Tensor, num_full: int) -> list[int]:
    """The placement of `num_full` full steps with the least total drift, step 0 among them.

    The full steps cut the decode into segments. A segment from full step i up to, not including, j costs what
    the features predicted from i drift at the steps between them; `best_J[j]` is the least cost of the first
    j steps with so many segments. Exact, in O(F S^2).

    Args:
        drift_SS: drift_SS[i, s] is the drift at step s of features predicted from a full step i < s; what
            lies on and below the diagonal is not read (feature_drift.py measures it).

    Errors: ValueError unless 1 <= num_full <= S and the drift is a finite square.
    """
    cost_SJ = _segment_costs(drift_SS)
    num_steps = len(cost_SJ)
    _check_count(num_steps, num_full)
    best_J = cost_SJ[0]
    last_starts = []
    for _ in range(num_full - 1):
        best_J, start_J = (best_J[:-1, None] + cost_SJ).min(dim=0)
        last_starts.append(start_J)
    placed, end = [], num_steps
    for start_J in reversed(last_starts):
        end = int(start_J[end])
        placed.append(end)
    return [0, *reversed(placed)]


def _segment_costs(drift_SS: Tensor) -> Tensor:
    """Cost of the segment of a full step at row i that lasts until column j, float64 [S, S + 1]; infinite for
    j <= i.
    """
    if drift_SS.ndim != 2 or drift_SS.shape[0] != drift_SS.shape[1]:
        raise ValueError(f"expected the drift of every pair of steps, got shape {tuple(drift_SS.shape)}")
    above_SS = drift_SS.double().triu(1)
    if not above_SS.isfinite().all():
        raise ValueError("expected finite drift, got infinite or undefined entries: look at the features")
    num_steps = len(above_SS)
    until_SJ = torch.cat([torch.zeros(num_steps, 1, dtype=torch.float64), above_SS.cumsum(dim=1)], dim=1)
    index_S = torch.arange(num_steps)
    is_empty_SJ = torch.arange(num_steps + 1)[None] <= index_S[:, None]
    return until_SJ.masked_fill(is_empty_SJ, torch.inf)


def _check_count(num_steps: int, num_full: int) -> None:
    if not 1 <= num_full <= num_steps:
        raise ValueError(
            f"full steps must be between 1 and the number of steps ({num_steps}), got {num_full}"
        )
