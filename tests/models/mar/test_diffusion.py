"""The diffusion process: the reference's tables, its traps, and chains that sample what they should."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from swiftmask.core.types import Denoising
from swiftmask.models.mar import diffusion as d

GOLDEN = Path(__file__).parents[2] / "golden"
CHECKED = {
    # timestep: beta, signal, noise over signal
    0: (4.1284224822e-05, 9.9995871578e-01, 0.006425),
    250: (1.3272239542e-03, 8.4588798650e-01, 0.426837),
    500: (3.1556914416e-03, 4.9228517245e-01, 1.015551),
    755: (7.7500702556e-03, 1.3776357927e-01, 2.501762),
    998: (7.4999939290e-01, 2.4287669070e-06, 641.7),
    999: (9.9900000000e-01, 2.4287669070e-09, 20291.17),
}


@pytest.mark.parametrize("timestep", CHECKED)
def test_training_tables(timestep: int) -> None:
    process = d.training_process()
    beta, signal, ratio = CHECKED[timestep]
    assert process.betas_S[timestep].item() == pytest.approx(beta, rel=1e-9)
    found = process.signal_S[timestep].item()
    assert found == pytest.approx(signal, rel=1e-9)
    assert math.sqrt((1 - found) / found) == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize("count", [1000, 100])
def test_golden_tables_to_float64(count: int) -> None:
    process = d.training_process() if count == 1000 else d.respaced(d.respaced_timesteps(count))
    tables = {
        "betas": process.betas_S,
        "alphas_cumprod": process.signal_S,
        "posterior_variance": process.posterior_variance_S,
        "posterior_log_variance_clipped": process.posterior_log_variance_S,
        "posterior_mean_coef1": process.mean_from_clean_S,
        "posterior_mean_coef2": process.mean_from_noisy_S,
        "map": process.timesteps_S,
    }
    with np.load(GOLDEN / "mar_recipe_weights.npz") as arrays:
        for name, ours in tables.items():
            np.testing.assert_allclose(ours.numpy(), arrays[f"H{count}_{name}"], rtol=1e-12, err_msg=name)


def test_respacing() -> None:
    hundred = d.respaced_timesteps(100)
    assert hundred[:8] == [0, 10, 20, 30, 40, 50, 61, 71]
    assert hundred[-3:] == [979, 989, 999]
    assert d.respaced_timesteps(2) == [0, 999]
    assert d.respaced_timesteps(1) == [0]
    assert d.respaced_timesteps(1000) == list(range(1000))


def test_ddim_visits_no_place_where_errors_explode_or_nothing_is_left_to_do() -> None:
    assert d.ddim_timesteps(1) == [980]
    assert d.ddim_timesteps(4) == [245, 490, 735, 980]
    hundred = d.ddim_timesteps(100)
    assert hundred[0] == 10
    assert len(set(hundred)) == 100


@pytest.mark.parametrize(
    ("denoising", "message"),
    [
        (Denoising(num_steps=1), "at least 2 denoising steps, got 1: use sampler=ddim"),
        (Denoising(num_steps=0, deterministic=True), "between 1 and 980, got 0"),
        (Denoising(num_steps=1001), "between 1 and 1000, got 1001"),
        (Denoising(num_steps=900, deterministic=True, noisiest=800), "between 1 and 800, got 900"),
        (Denoising(num_steps=5, noisiest=1000), "noisiest_timestep must be between 1 and 999, got 1000"),
    ],
)
def test_impossible_chains(denoising: Denoising, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        d.reverse_chain(denoising)


def test_noise_is_drawn_by_all_ancestral_steps_but_the_last() -> None:
    chain = d.reverse_chain(Denoising(num_steps=5))
    assert [step.draws_noise for step in chain] == [True] * 4 + [False]
    assert [step.timestep for step in chain] == [999, 749, 500, 250, 0]
    deterministic = d.reverse_chain(Denoising(num_steps=5, deterministic=True))
    assert not any(step.draws_noise for step in deterministic)


def test_a_chain_can_start_where_errors_are_small() -> None:
    ancestral = d.reverse_chain(Denoising(num_steps=3, noisiest=980))
    assert [step.timestep for step in ancestral] == [980, 490, 0]
    deterministic = d.reverse_chain(Denoising(num_steps=2, deterministic=True, noisiest=900))
    assert [step.timestep for step in deterministic] == [900, 450]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("num_steps", [2, 7, 100])
def test_a_chain_told_the_true_noise_ends_at_the_token(num_steps: int, deterministic: bool) -> None:
    """With x0 fixed, the noise in x_t is known exactly, and the last step must return x0."""
    clean_XC, signal_T = torch.randn(6, 3), d.training_process().signal_S.float()
    token_XC = torch.randn(6, 3)
    for step in d.reverse_chain(Denoising(num_steps=num_steps, deterministic=deterministic)):
        signal = signal_T[step.timestep]
        noise_XC = (token_XC - signal.sqrt() * clean_XC) / (1 - signal).sqrt()
        fresh_XC = torch.randn(6, 3) if step.draws_noise else None
        token_XC = step.advance(token_XC, noise_XC, torch.zeros(6, 3), fresh_XC)
    torch.testing.assert_close(token_XC, clean_XC, rtol=0, atol=0.01)


def test_injected_variance_lies_between_its_bounds() -> None:
    step = d.reverse_chain(Denoising(num_steps=100))[40]
    assert isinstance(step, d.AncestralStep)
    zero = torch.zeros(1, 1)
    for spread, log_variance in ((1.0, step.log_beta), (-1.0, step.log_posterior)):
        moved = step.advance(zero, zero, torch.full((1, 1), spread), torch.ones(1, 1))
        assert moved.item() == pytest.approx(math.exp(0.5 * log_variance), rel=1e-5)
    beyond = step.advance(zero, zero, torch.full((1, 1), 3.0), torch.ones(1, 1))
    expected = 2 * step.log_beta - step.log_posterior
    assert beyond.item() == pytest.approx(math.exp(0.5 * expected), rel=1e-5), "not clamped"


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_gain_is_what_an_error_of_the_head_is_multiplied_by(deterministic: bool) -> None:
    zero = torch.zeros(1, 1, dtype=torch.float64)
    for step in d.reverse_chain(Denoising(num_steps=100, deterministic=deterministic, noisiest=999)):
        moved = step.advance(zero, zero, zero, None) - step.advance(zero, zero + 1, zero, None)
        assert abs(moved.item()) == pytest.approx(step.gain, rel=1e-6)


def test_variance_alone_is_trained_by_the_bound() -> None:
    predicted_XE, clean_XC, noise_XC = (
        torch.randn(9, 8, requires_grad=True),
        torch.randn(9, 4),
        torch.randn(9, 4),
    )
    timesteps_X = torch.tensor([0, 1, 5, 250, 500, 755, 900, 998, 999])
    noisy_XC = d.add_noise(clean_XC, noise_XC, timesteps_X)
    d.variational_bound(predicted_XE, clean_XC, noisy_XC, timesteps_X).sum().backward()
    assert predicted_XE.grad is not None
    assert predicted_XE.grad.isfinite().all()
    assert (predicted_XE.grad[:, :4] == 0).all()
    assert (predicted_XE.grad[:, 4:] != 0).any(dim=1).all()


def test_the_bound_vanishes_for_the_true_posterior() -> None:
    clean_XC, noise_XC = torch.randn(5, 4), torch.randn(5, 4)
    timesteps_X = torch.tensor([1, 20, 300, 700, 950])
    noisy_XC = d.add_noise(clean_XC, noise_XC, timesteps_X)
    exact_XE = torch.cat([noise_XC, torch.full_like(noise_XC, -1.0)], dim=-1)
    bound_X = d.variational_bound(exact_XE, clean_XC, noisy_XC, timesteps_X)
    torch.testing.assert_close(bound_X, torch.zeros(5), rtol=0, atol=1e-4)
    wider_XE = torch.cat([noise_XC, torch.zeros_like(noise_XC)], dim=-1)
    wider_X = d.variational_bound(wider_XE, clean_XC, noisy_XC, timesteps_X)
    assert (wider_X[:3] > 1e-6).all(), "later the two bounds all but meet"


def _likelihood(x: float, mean: float, std: float) -> float:
    """Exact log mass of a bin of 2/255 around x."""

    def below(value: float) -> float:
        return 0.5 * (1 + math.erf((value - mean) / std / math.sqrt(2)))

    return math.log(below(x + 1 / 255) - below(x - 1 / 255))


def test_likelihood_of_a_bin() -> None:
    x, mean, log_std = (torch.tensor([value]) for value in (0.3, 0.31, math.log(0.02)))
    found: Tensor = d._binned_log_likelihood(x, mean, log_std)
    assert found.item() == pytest.approx(_likelihood(0.3, 0.31, 0.02), abs=0.01)
    outside = d._binned_log_likelihood(torch.tensor([1.5]), torch.tensor([2.0]), torch.tensor([-3.0]))
    assert outside.item() == pytest.approx(0.0, abs=1e-6), "beyond 0.999 the bin has no upper end"


def test_chains_are_values() -> None:
    assert d.reverse_chain(Denoising(num_steps=7)) is d.reverse_chain(replace(Denoising(num_steps=7)))
