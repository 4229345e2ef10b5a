"""Guided score implicit matching, MARVAL's loss (arXiv 2511.15190), in the noise form of MAR's head.

The student's tokens, noised, should have the score of the teacher's. With alpha = sqrt(signal), sigma =
sqrt(1 - signal), x_t = alpha x0 + sigma eps and a score of -eps_hat / sigma, let

    y = (teacher_eps - auxiliary_eps) / sigma,    n = sqrt(|y|^2 + r^2)       (pseudo-Huber, one token)
    L1 = - y . (eps - auxiliary_eps) / (sigma n),    L2 = n - r

where the auxiliary network stands for the student's own score, its weights held still. The gradient of
L1 + L2 is the true gradient of E[n - r] (the paper's theorem 1) only if x_t keeps its dependence on the
student everywhere, y / n included: detaching that factor halves the gradient of the spread.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TimeWeight = Callable[[Tensor, Tensor], Tensor]
"""omega: `weight(timesteps_X, signal_T) -> weights_X`, of each noised token in the loss."""


def gsim_loss(
    eps_XC: Tensor,
    teacher_eps_XC: Tensor,
    auxiliary_eps_XC: Tensor,
    signal_X: Tensor,
    *,
    second_weight: float = 1.0,
    radius: float = 1e-5,
) -> Tensor:
    """L1 + `second_weight` L2 of every noised token: [X].

    Args:
        eps_XC: the noise that was added.
        teacher_eps_XC: what the (guided) teacher takes for noise; carries gradients to the noised tokens.
        auxiliary_eps_XC: the same of the auxiliary network, its weights held still.
        signal_X: cumulative signal of each token's timestep; float64 keeps 1 - signal exact near 1.
        second_weight: lambda_2; 1 is the paper's, 0 is plain score implicit matching.
        radius: r of the pseudo-Huber distance.
    """
    sigma_X1 = (1 - signal_X).sqrt().to(eps_XC.dtype)[:, None]
    gap_XC = (teacher_eps_XC - auxiliary_eps_XC) / sigma_X1
    error_XC = (eps_XC - auxiliary_eps_XC) / sigma_X1
    norm_X = (gap_XC.square().sum(-1) + radius**2).sqrt()
    first_X = -(gap_XC * error_XC).sum(-1) / norm_X
    return first_X + second_weight * (norm_X - radius)


def denoising_loss(eps_XC: Tensor, predicted_eps_XC: Tensor) -> Tensor:
    """The auxiliary network's loss: mean squared error, without MAR's variance term."""
    return (eps_XC - predicted_eps_XC).square().mean()


def add_noise(tokens_XC: Tensor, eps_XC: Tensor, signal_X: Tensor) -> Tensor:
    """x_t = sqrt(signal) x0 + sqrt(1 - signal) eps, in the dtype of the tokens."""
    alpha_X1 = signal_X.sqrt().to(tokens_XC.dtype)[:, None]
    sigma_X1 = (1 - signal_X).sqrt().to(tokens_XC.dtype)[:, None]
    return alpha_X1 * tokens_XC + sigma_X1 * eps_XC


def flat(timesteps_X: Tensor, signal_T: Tensor) -> Tensor:
    """The same weight everywhere: the pseudo-Huber norm already evens the scales of the scores out."""
    return torch.ones_like(timesteps_X, dtype=torch.float32)


def noise_level(timesteps_X: Tensor, signal_T: Tensor) -> Tensor:
    """sigma: takes back the 1 / sigma of a score, which makes the last, least noisy timesteps the loudest."""
    return (1 - signal_T[timesteps_X]).sqrt().float()
