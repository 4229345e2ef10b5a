"""The law of mask rates, and canvases that follow it."""

import pytest
import torch

from swiftmask.methods.marval.training import MaskLaw, mask_tokens


def test_moments_of_mars_law():
    """A normal (1, 0.25) truncated to [0.7, 1], in 256 tokens: 222.5 of them on average."""
    counts = [MaskLaw().num_masked(256, (i + 0.5) / 2000) for i in range(2000)]
    assert sum(counts) / 2000 == pytest.approx(222.5, abs=0.1)
    assert (torch.tensor(counts) / 256).std().item() == pytest.approx(0.0835, abs=1e-3)
    assert min(counts) == 180
    assert max(counts) == 256


def test_a_wide_law_reaches_one_token():
    law = MaskLaw(lowest=0.0, std=0.5)
    assert law.num_masked(16, 0.0) == 1
    assert law.num_masked(16, 1 - 1e-9) == 16


@pytest.mark.parametrize("values", [{"lowest": 1.0}, {"highest": 1.5}, {"std": 0.0}])
def test_impossible_laws_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        MaskLaw(**values)


def test_masks_have_one_count_and_differ():
    tokens_BLC = torch.randn(8, 16, 3)
    canvas = mask_tokens(tokens_BLC, MaskLaw(lowest=0.3), torch.Generator().manual_seed(0))
    assert canvas.masked_BL.sum(dim=1).tolist() == [canvas.num_masked] * 8
    assert len({tuple(row) for row in canvas.masked_BL.tolist()}) > 1
    known_BL = ~canvas.masked_BL
    assert torch.equal(canvas.tokens_BL[known_BL], tokens_BLC[known_BL])
    assert not canvas.tokens_BL[canvas.masked_BL].any()
