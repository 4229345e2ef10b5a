"""Categorical tokens, guidance, and rows of features."""

import pytest
import torch
from torch.distributions import Categorical

from swiftmask.core.rng import SeededNoise
from swiftmask.core.tokens import CategoricalTokens, gather_rows, guide
from swiftmask.core.types import Step

POSITIONS = torch.tensor([[3, 0, 5], [1, 2, 7]])


def _step(temperature: float) -> Step:
    return Step(index=0, num_masked_before=3, num_masked_after=0, temperature=temperature)


def test_guidance_convention() -> None:
    """`guidance = 1 + w` is the reference's (1 + w) c - w u."""
    branches_GX = torch.randn(2, 3, 4)
    conditional, null = branches_GX
    torch.testing.assert_close(guide(branches_GX, 3.8), 3.8 * conditional - 2.8 * null)
    torch.testing.assert_close(guide(branches_GX, 0.0), null)


def test_guidance_of_one_is_off_to_the_bit() -> None:
    branches_GX = torch.randn(2, 3, 4).bfloat16()
    assert torch.equal(guide(branches_GX, 1.0), branches_GX[0])
    assert torch.equal(guide(branches_GX[:1], 5.0), branches_GX[0])


def test_guidance_is_mixed_in_float32() -> None:
    branches_GX = torch.randn(2, 3, 4).bfloat16()
    conditional, null = branches_GX.float()
    torch.testing.assert_close(guide(branches_GX, 9.0), null + 9 * (conditional - null))


def test_rows_are_gathered_in_every_branch() -> None:
    features_GBTD = torch.randn(2, 2, 9, 4)
    rows_GBMD = gather_rows(features_GBTD, POSITIONS)
    assert rows_GBMD.shape == (2, 2, 3, 4)
    for image in range(2):
        assert torch.equal(rows_GBMD[:, image], features_GBTD[:, image, POSITIONS[image]])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_agrees_with_torch_distributions(temperature: float) -> None:
    logits_BMV = 3 * torch.randn(2, 3, 11)
    ours, reference = CategoricalTokens(logits_BMV, POSITIONS), Categorical(logits=logits_BMV / temperature)
    tokens_BM = torch.randint(11, (2, 3))
    torch.testing.assert_close(ours.log_prob(tokens_BM, temperature), reference.log_prob(tokens_BM))
    torch.testing.assert_close(ours.entropy(temperature), reference.entropy())


def test_sampling_returns_the_log_prob_of_its_tokens() -> None:
    tokens = CategoricalTokens(3 * torch.randn(2, 3, 11), POSITIONS)
    tokens_BM, log_prob_BM = tokens.sample(SeededNoise([0, 1], 8), _step(0.7))
    assert tokens_BM.shape == (2, 3)
    assert torch.equal(log_prob_BM, tokens.log_prob(tokens_BM, 0.7))


def test_low_temperature_takes_the_best_code() -> None:
    logits_BMV = torch.randn(2, 3, 11)
    tokens_BM, _ = CategoricalTokens(logits_BMV, POSITIONS).sample(SeededNoise([0, 1], 8), _step(1e-4))
    assert torch.equal(tokens_BM, logits_BMV.argmax(-1))


def test_log_prob_has_a_gradient() -> None:
    logits_BMV = torch.randn(2, 3, 11, requires_grad=True)
    CategoricalTokens(logits_BMV, POSITIONS).log_prob(
        torch.zeros(2, 3, dtype=torch.int64), 1.0
    ).sum().backward()
    assert logits_BMV.grad is not None
    torch.testing.assert_close(logits_BMV.grad.sum(-1), torch.zeros(2, 3), rtol=0, atol=1e-6)
