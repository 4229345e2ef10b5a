"""The loss against what it must be the gradient of, on Gaussians whose scores are known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from swiftmask.methods.marval.objective import (
    add_noise,
    denoising_loss,
    flat,
    gsim_loss,
    noise_level,
)

SIGNAL = 0.5
ALPHA, SIGMA = SIGNAL**0.5, (1 - SIGNAL) ** 0.5
TEACHER_MEAN = torch.tensor([0.8, -0.5, 0.4], dtype=torch.float64)
TEACHER_STD = torch.tensor([0.6, 1.2, 0.5], dtype=torch.float64)
NUM_SAMPLES = 2**17
TOLERANCE = 2e-3
"""Of every component of the gradient, relative to the largest."""

SQUARED, PSEUDO_HUBER = 1e4, 1e-5
"""Radii: with a large one the distance is |y|^2 / 2r."""


def student_at_start() -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation of the student's token."""
    mean_C = torch.tensor([-0.3, 0.2, 0.1], dtype=torch.float64, requires_grad=True)
    log_std_C = torch.tensor([0.1, -0.4, 0.5], dtype=torch.float64, requires_grad=True)
    return mean_C, log_std_C


def exact_noise(noisy_XC: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """E[eps | x_t] of Gaussian tokens."""
    return SIGMA * (noisy_XC - ALPHA * mean_C) / (SIGNAL * std_C**2 + 1 - SIGNAL)


def true_gradient(radius: float) -> Tensor:
    """Of E sqrt(|y|^2 + r^2) over the student's noised tokens, by quadrature in their three dimensions."""
    mean_C, log_std_C = student_at_start()
    nodes, weights = np.polynomial.hermite_e.hermegauss(48)
    nodes_NC = torch.cartesian_prod(*[torch.tensor(nodes)] * 3)
    weights_N = torch.cartesian_prod(*[torch.tensor(weights)] * 3).prod(dim=1)
    variance_C = SIGNAL * (2 * log_std_C).exp() + 1 - SIGNAL
    noisy_NC = ALPHA * mean_C + variance_C.sqrt() * nodes_NC
    gap_NC = exact_noise(noisy_NC, TEACHER_MEAN, TEACHER_STD) - exact_noise(noisy_NC, mean_C, log_std_C.exp())
    distance_N = ((gap_NC / SIGMA).square().sum(-1) + radius**2).sqrt()
    expected = (weights_N * distance_N).sum() / weights_N.sum()
    return torch.cat(torch.autograd.grad(expected, (mean_C, log_std_C)))


def pathwise_gradient(loss) -> Tensor:
    """Of the mean of `loss(eps, teacher_eps, auxiliary_eps, signal_X)`, the auxiliary network exact and held
    still, over a low-discrepancy sample of the student's and the added noise.
    """
    mean_C, log_std_C = student_at_start()
    uniform_XE = torch.quasirandom.SobolEngine(6, scramble=True, seed=0).draw(
        NUM_SAMPLES, dtype=torch.float64
    )
    noise_XC, eps_XC = torch.special.ndtri(uniform_XE.clamp(1e-12, 1 - 1e-12)).chunk(2, dim=-1)
    signal_X = torch.full((NUM_SAMPLES,), SIGNAL, dtype=torch.float64)
    noisy_XC = add_noise(mean_C + log_std_C.exp() * noise_XC, eps_XC, signal_X)
    teacher_eps_XC = exact_noise(noisy_XC, TEACHER_MEAN, TEACHER_STD)
    auxiliary_eps_XC = exact_noise(noisy_XC, mean_C.detach(), log_std_C.detach().exp())
    value = loss(eps_XC, teacher_eps_XC, auxiliary_eps_XC, signal_X).mean()
    return torch.cat(torch.autograd.grad(value, (mean_C, log_std_C)))


def error(gradient: Tensor, radius: float) -> float:
    expected = true_gradient(radius)
    return ((gradient - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("radius", [SQUARED, PSEUDO_HUBER])
def test_the_gradient_is_that_of_the_distance_between_the_scores(radius):
    gradient = pathwise_gradient(lambda *noises: gsim_loss(*noises, radius=radius))
    assert error(gradient, radius) < TOLERANCE


@pytest.mark.parametrize("radius", [SQUARED, PSEUDO_HUBER])
def test_the_first_term_alone_is_another_gradient(radius):
    gradient = pathwise_gradient(lambda *noises: gsim_loss(*noises, radius=radius, second_weight=0.0))
    assert error(gradient, radius) > 20 * TOLERANCE


@pytest.mark.parametrize("radius", [SQUARED, PSEUDO_HUBER])
def test_detaching_the_direction_is_another_gradient(radius):
    """What we do not do: it leaves the mean's gradient as it is and makes light of the spread."""

    def detached(eps_XC: Tensor, teacher_XC: Tensor, auxiliary_XC: Tensor, signal_X: Tensor) -> Tensor:
        gap_XC = (teacher_XC - auxiliary_XC) / SIGMA
        norm_X = (gap_XC.square().sum(-1) + radius**2).sqrt()
        direction_XC = (gap_XC / norm_X[:, None]).detach()
        return norm_X - (direction_XC * (eps_XC - auxiliary_XC) / SIGMA).sum(-1)

    gradient, expected = pathwise_gradient(detached), true_gradient(radius)
    assert error(gradient, radius) > 20 * TOLERANCE
    assert (gradient[:3] - expected[:3]).abs().max() < TOLERANCE * expected.abs().max()
    assert (gradient[3:].abs() < 0.8 * expected[3:].abs()).all()


@pytest.mark.parametrize("second_weight", [1.0, 0.3])
def test_noise_form_equals_score_form(second_weight):
    """The loss as the paper writes it, in scores: grad log p(x_t | x_0) is that of the added noise."""
    eps_XC, teacher_XC, auxiliary_XC = torch.randn(3, 7, 4, dtype=torch.float64)
    signal_X = torch.rand(7, dtype=torch.float64)
    sigma_X1 = (1 - signal_X).sqrt()[:, None]
    score_XC, teacher_score_XC, auxiliary_score_XC = (
        -e / sigma_X1 for e in (eps_XC, teacher_XC, auxiliary_XC)
    )
    gap_XC = auxiliary_score_XC - teacher_score_XC
    norm_X = (gap_XC.square().sum(-1) + 0.2**2).sqrt()
    first_X = -((gap_XC / norm_X[:, None]) * (auxiliary_score_XC - score_XC)).sum(-1)
    expected_X = first_X + second_weight * (norm_X - 0.2)
    loss_X = gsim_loss(eps_XC, teacher_XC, auxiliary_XC, signal_X, second_weight=second_weight, radius=0.2)
    torch.testing.assert_close(loss_X, expected_X)


def test_noise_is_added_in_the_proportion_of_the_signal():
    tokens_XC, eps_XC = torch.ones(2, 3), torch.full((2, 3), 10.0)
    noisy_XC = add_noise(tokens_XC, eps_XC, torch.tensor([0.64, 1.0], dtype=torch.float64))
    torch.testing.assert_close(noisy_XC, torch.tensor([[0.8 + 6.0], [1.0]]).expand(2, 3))
    assert denoising_loss(eps_XC, eps_XC - 2).item() == 4.0


def test_weights_of_the_timesteps(teacher):
    signal_T, timesteps_X = teacher.signal_T, torch.tensor([0, 250, 755])
    assert flat(timesteps_X, signal_T).tolist() == [1.0, 1.0, 1.0]
    expected_X = torch.tensor([1 - 0.99995871578, 1 - 0.84588798650, 1 - 0.13776357927]).sqrt()
    torch.testing.assert_close(noise_level(timesteps_X, signal_T), expected_X, rtol=1e-3, atol=0)
