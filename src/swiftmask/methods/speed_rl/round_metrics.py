"""What a round says about the policy: scores by name and by step count, spread, filter."""

from collections.abc import Sequence

import torch
from torch import Tensor

from swiftmask.methods.speed_rl.filtering import Kept
from swiftmask.methods.speed_rl.rewards import Rewards
from swiftmask.training.setup import Metrics


@torch.no_grad()
def round_metrics(
    names: Sequence[str], scores_MPK: Tensor, *, rewards: Rewards, steps_PK: Tensor, kept: Kept
) -> Metrics:
    """Metrics under TRL's names where it has them.

    `reward` is what advantages are made from, `reward_std` its mean spread within a group;
    `quality_reward` and `reward_by_steps/N` are the weighted sum of the rewards in their own units, and
    `rewards/NAME/...` rewards and judges one by one. `filter/threshold` is missing while the
    filter is inactive.
    """
    std_P = rewards.total_PK.std(dim=1)
    metrics = {
        "reward": rewards.total_PK.mean(),
        "reward_std": std_P.mean(),
        "frac_reward_zero_std": (std_P == 0).float().mean(),
        "quality_reward": rewards.raw_PK.mean(),
        "speed_reward": rewards.speed_PK.mean(),
        "filter/kept_frac": kept.kept_PK.float().mean(),
    }
    if kept.threshold.isfinite():
        metrics["filter/threshold"] = kept.threshold
    for name, score_PK in zip(names, scores_MPK, strict=True):
        known_X = score_PK[~score_PK.isnan()]
        metrics |= {f"rewards/{name}/mean": known_X.mean(), f"rewards/{name}/std": known_X.std()}
    return metrics | _by_steps(rewards.raw_PK, steps_PK)


def diversity(tokens_PKL: Tensor) -> Tensor:
    """Share of the canvas at which two pictures of a prompt differ in their codes, over all pairs."""
    num_alike = tokens_PKL.shape[1]
    differ_PKK = torch.stack(
        [(tokens_PKL != tokens_PKL[:, [k]]).float().mean(-1) for k in range(num_alike)], dim=1
    )
    return differ_PKK.sum() / (len(tokens_PKL) * num_alike * (num_alike - 1))


def _by_steps(quality_PK: Tensor, steps_PK: Tensor) -> Metrics:
    metrics = {"steps/mean": steps_PK.float().mean()}
    for num_steps in steps_PK.unique().tolist():
        these_PK = steps_PK == num_steps
        metrics[f"steps/hist/{num_steps}"] = these_PK.float().mean()
        metrics[f"reward_by_steps/{num_steps}"] = quality_PK[these_PK].mean()
    return metrics
