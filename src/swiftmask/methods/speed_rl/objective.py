"""GRPO's clipped objective on recorded images, and what holds the policy to its reference.

    J = E[ mean_j min(rho_j A, clip(rho_j, 1 - epsilon, 1 + epsilon_high) A) ] - beta KL,    rho = p / p_old

with one advantage per image (arXiv 2402.03300; asymmetric clipping arXiv 2503.14476). Every image of a
masked generator has the same number of tokens, so the usual ways of averaging over tokens (grpo, bnpo,
dapo) are one, and only that one is here. Speed-RL (arXiv 2512.01094) reports that a likelihood per token
does better than one per image; the published part of the paper leaves its "low-variance cross-entropy KL
estimator" open. `ce` is our reading: the reference's distribution as soft targets, whose gradient is what
GRPO's k3 has on average, without the variance of the sampled code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LogRatio = Callable[[Tensor], Tensor]
"""`level(log_ratio_BL) -> log_ratio_BL`: over what a likelihood ratio is averaged."""

KLEstimator = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`kl(log_probs_BNV, reference_log_probs_BNV, tokens_BN) -> kl_BN`."""


def per_token(log_ratio_BL: Tensor) -> Tensor:
    """Every token its own ratio."""
    return log_ratio_BL


def per_sequence(log_ratio_BL: Tensor) -> Tensor:
    """The mean over the image (GSPO, arXiv 2507.18071): the sum would be noise alone over thousands of
    tokens.
    """
    return log_ratio_BL.mean(dim=1, keepdim=True).expand_as(log_ratio_BL)


IMPORTANCE_SAMPLING_LEVELS: dict[str, LogRatio] = {"token": per_token, "sequence": per_sequence}


def soft_cross_entropy(log_probs_BNV: Tensor, reference_log_probs_BNV: Tensor, tokens_BN: Tensor) -> Tensor:
    """KL(reference || policy), the cross-entropy with the reference's own entropy taken off.

    Its gradient in the logits, p - p_reference, is the mean of k3's over codes drawn from the policy.
    """
    gap_BNV = reference_log_probs_BNV - log_probs_BNV
    return (reference_log_probs_BNV.exp() * gap_BNV).sum(-1)


def k3(log_probs_BNV: Tensor, reference_log_probs_BNV: Tensor, tokens_BN: Tensor) -> Tensor:
    """q / p - log(q / p) - 1 at the drawn code, with q the reference's probability (GRPO's estimator)."""
    gap_BNV = reference_log_probs_BNV - log_probs_BNV
    gap_BN = gap_BNV.gather(-1, tokens_BN[..., None])[..., 0]
    return gap_BN.exp() - gap_BN - 1


KL_ESTIMATORS: dict[str, KLEstimator | None] = {"ce": soft_cross_entropy, "k3": k3, "none": None}
"""None runs no reference at all."""


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The clipped objective of some images.

    Attributes:
        loss_B: minus the objective, averaged over the tokens of each image.
        ratio_BL: likelihood ratios.
        low_BL, high_BL: bool, where clipping took the gradient away, below and above.
    """

    loss_B: Tensor
    ratio_BL: Tensor
    low_BL: Tensor
    high_BL: Tensor


def clipped_surrogate(
    log_ratio_BL: Tensor, advantages_B: Tensor, *, epsilon: float, epsilon_high: float
) -> Surrogate:
    """The clipped objective.

    Args:
        log_ratio_BL: of the level it was averaged over; carries the gradients.
        epsilon, epsilon_high: ratios below 1 - epsilon and above 1 + epsilon_high are clipped.
    """
    ratio_BL = log_ratio_BL.exp()
    advantages_B1 = advantages_B[:, None]
    clipped_BL = ratio_BL.clamp(1 - epsilon, 1 + epsilon_high)
    gain_BL = torch.minimum(ratio_BL * advantages_B1, clipped_BL * advantages_B1)
    return Surrogate(
        loss_B=-gain_BL.mean(dim=1),
        ratio_BL=ratio_BL.detach(),
        low_BL=(ratio_BL < 1 - epsilon) & (advantages_B1 < 0),
        high_BL=(ratio_BL > 1 + epsilon_high) & (advantages_B1 > 0),
    )
