"""Advantages of the pictures of a prompt over each other: GRPO's, no value network (arXiv 2402.03300).

    A = (reward - baseline) / (std + 1e-4), clipped

`group` is GRPO's own scaling, `batch` one standard deviation for all prompts, `none` that of Dr. GRPO
(arXiv 2503.20783). With a baseline per prompt an additive speed term cancels unless the step counts of a
group differ; with one per prompt and step count it always cancels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

STD_OFFSET = 1e-4
"""Keeps groups of equal rewards at zero; TRL's."""

Baseline = Callable[[Tensor, Tensor], Tensor]
"""`baseline(rewards_PK, steps_PK) -> expected_PK`."""

Scale = Callable[[Tensor], Tensor]
"""`scale(rewards_PK) -> divisor_P1`."""


def of_prompt(rewards_PK: Tensor, steps_PK: Tensor) -> Tensor:
    """The mean of the group."""
    return rewards_PK.mean(dim=1, keepdim=True).expand_as(rewards_PK)


def of_prompt_and_steps(rewards_PK: Tensor, steps_PK: Tensor) -> Tensor:
    """The mean of those in the group that took as many steps."""
    alike_PKK = (steps_PK[:, :, None] == steps_PK[:, None, :]).to(rewards_PK.dtype)
    return (alike_PKK * rewards_PK[:, None, :]).sum(-1) / alike_PKK.sum(-1)


BASELINES: dict[str, Baseline] = {"group": of_prompt, "group_and_steps": of_prompt_and_steps}


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


def advantages(
    rewards_PK: Tensor, steps_PK: Tensor, *, baseline: Baseline, scale: Scale, clip: float
) -> Tensor:
    """How much better each picture is than its group: float32 [P, K], within [-clip, clip].

    Args:
        steps_PK: decode steps each picture took.
    """
    centred_PK = rewards_PK - baseline(rewards_PK, steps_PK)
    return (centred_PK / scale(rewards_PK)).clamp(-clip, clip)
