"""Advantages of the pictures of a prompt over each other: GRPO's, no value network (arXiv 2402.03300).

    A = (reward - mean of the group) / (std + 1e-4), clipped

`group` is GRPO's own scaling, `batch` one standard deviation for all prompts, `none` that of Dr. GRPO
(arXiv 2503.20783).
"""

from collections.abc import Callable

import torch
from torch import Tensor

STD_OFFSET = 1e-4
"""Keeps groups of equal rewards at zero; TRL's."""

Scale = Callable[[Tensor], Tensor]
"""`scale(rewards_PK) -> divisor_P1`."""


def by_group(rewards_PK: Tensor) -> Tensor:
    """The unbiased standard deviation of each group."""
    return rewards_PK.std(dim=1, keepdim=True) + STD_OFFSET


def by_batch(rewards_PK: Tensor) -> Tensor:
    """One unbiased standard deviation, of all rewards."""
    return (rewards_PK.std() + STD_OFFSET).expand(len(rewards_PK), 1)


def not_at_all(rewards_PK: Tensor) -> Tensor:
    """Rewards in their own units."""
    return torch.ones_like(rewards_PK[:, :1])


SCALES: dict[str, Scale] = {"group": by_group, "batch": by_batch, "none": not_at_all}


def advantages(rewards_PK: Tensor, *, scale: Scale, clip: float) -> Tensor:
    """How much better each image is than its group: float32 [P, K], within [-clip, clip]."""
    centred_PK = rewards_PK - rewards_PK.mean(dim=1, keepdim=True)
    return (centred_PK / scale(rewards_PK)).clamp(-clip, clip)
