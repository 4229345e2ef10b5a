"""The reference's bfloat16 noise."""

import pytest
import torch

from swiftmask.core.rng import SeededNoise
from swiftmask.core.types import Step
from swiftmask.models.lumina_dimoo.truncation import TruncatedTokens, guided_logits, truncated_gumbel

STEP = Step(index=0, num_masked_before=1, num_masked_after=0)


def test_the_largest_values_are_the_recorded_ones() -> None:
    """Uniforms in bfloat16 are multiples of 1/256 near 1."""
    found = truncated_gumbel(1 - torch.arange(1, 7) / 256)
    torch.testing.assert_close(
        found.float(), torch.tensor([5.53, 4.84, 4.44, 4.16, 3.92, 3.75]), atol=0.015, rtol=0
    )


def test_draws_that_round_to_one_become_the_lowest_noise() -> None:
    noise = truncated_gumbel(torch.tensor([0.9999, 0.998, 1e-30, 0.5]))
    assert noise.dtype == torch.bfloat16
    assert noise[0] == noise[2] == noise.min()
    assert noise[0].item() == pytest.approx(-3.83, abs=0.02)
    assert noise[1].item() == pytest.approx(5.53, abs=0.02)


def test_how_often_each_happens() -> None:
    uniform = (torch.arange(200_000) + 0.5) / 200_000
    noise = truncated_gumbel(uniform)
    assert (noise > 5.5).float().mean().item() == pytest.approx(1 / 256, rel=0.05)
    assert (noise[uniform > 0.99] < -3.8).float().sum().item() / 200_000 == pytest.approx(1 / 512, rel=0.05)


def test_guidance_rounds_each_product() -> None:
    logits_GBMV = torch.tensor([[[[20.1, 3.0]]], [[[19.3, 1.0]]]])
    low = logits_GBMV.bfloat16()
    expected = (5 * low[0].float()).bfloat16() - (4 * low[1].float()).bfloat16()
    assert torch.equal(guided_logits(logits_GBMV, 5.0), expected)
    assert torch.equal(guided_logits(logits_GBMV, 1.0), low[0])


def test_rare_codes_never_appear() -> None:
    """What noise of at most 5.53 cannot lift over the best code is never drawn, unlike from the softmax."""
    logits_BMV = torch.full((1, 512, 64), -10.0).bfloat16()
    logits_BMV[..., 0] = 0.0
    positions_BM = torch.arange(512)[None]
    tokens_BM, confidence_BM = TruncatedTokens(logits_BMV, positions_BM).sample(SeededNoise([3], 512), STEP)
    assert (tokens_BM == 0).all()
    assert confidence_BM.dtype == torch.bfloat16
    logits_BMV[..., 1] = -1.0
    tokens_BM, _ = TruncatedTokens(logits_BMV, positions_BM).sample(SeededNoise([3], 512), STEP)
    assert 0.15 < (tokens_BM == 1).float().mean() < 0.4
