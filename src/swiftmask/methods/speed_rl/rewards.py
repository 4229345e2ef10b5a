"""What an image is worth: scores of several rewards of quality, a bonus for few decode steps, and how much
better than the other images of its prompt that makes it.

    quality = sum_m weight_m z(score_m), z within the group (TRL's normalize_then_sum, after GDPO)
    reward = quality + weight speed
    A = (reward - mean of the group) / (std of the group + 1e-4), clipped (GRPO, arXiv 2402.03300)

Speed-RL (arXiv 2512.01094) adds a speed reward to a quality reward; its form is not in the published part.
Here it falls linearly with the number of steps. If all images of a group take the same number of steps, it
cancels in the advantage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_STD_OFFSET = 1e-4
"""Keeps groups of equal rewards at zero; TRL's."""


def weighted_sum(scores_MPK: Tensor, weights_M: Tensor) -> Tensor:
    """Scores in their own units; a NaN score does not apply and counts for nothing."""
    return (weights_M[:, None, None] * scores_MPK).nansum(0)


def weighted_sum_of_z_scores(scores_MPK: Tensor, weights_M: Tensor) -> Tensor:
    """Every reward with a spread of one within the group, so that none drowns in another's units."""
    applies_MPK = ~scores_MPK.isnan()
    count_MP1 = applies_MPK.sum(-1, keepdim=True)
    centred_MPK = scores_MPK - scores_MPK.nanmean(-1, keepdim=True)
    variance_MP1 = centred_MPK.square().nansum(-1, keepdim=True) / (count_MP1 - 1).clamp(min=1)
    return weighted_sum(centred_MPK / (variance_MP1.sqrt() + _STD_OFFSET), weights_M)


def speed_reward(steps_PK: Tensor, step_counts: Sequence[int]) -> Tensor:
    """The bonus of each image, float32: from 1 for the fewest of the step counts down to 0 for the most."""
    fewest, most = min(step_counts), max(step_counts)
    if fewest == most:
        return torch.zeros_like(steps_PK, dtype=torch.float32)
    return ((most - steps_PK.float()) / (most - fewest)).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class Rewards:
    """Rewards of the images of a round, by prompt and sample.

    Attributes:
        raw_PK: weighted sum of the scores in their own units: what is filtered by and logged.
        speed_PK: the bonus for few steps, before its weight.
        total_PK: quality and speed together, what advantages are made from.
    """

    raw_PK: Tensor
    speed_PK: Tensor
    total_PK: Tensor


def combine(scores_MPK: Tensor, weights_M: Tensor, speed_PK: Tensor, *, speed_weight: float) -> Rewards:
    """Scores of M scorers, and the bonus for few steps, to rewards."""
    total_PK = weighted_sum_of_z_scores(scores_MPK, weights_M) + speed_weight * speed_PK
    return Rewards(weighted_sum(scores_MPK, weights_M), speed_PK, total_PK)


def advantages(rewards_PK: Tensor, *, clip: float) -> Tensor:
    """How much better each image is than its group: float32 [P, K], within [-clip, clip]."""
    centred_PK = rewards_PK - rewards_PK.mean(dim=1, keepdim=True)
    return (centred_PK / (rewards_PK.std(dim=1, keepdim=True) + _STD_OFFSET)).clamp(-clip, clip)
