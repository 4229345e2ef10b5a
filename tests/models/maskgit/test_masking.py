"""How much of an image is masked in training."""

import pytest
import torch

from swiftmask.models.maskgit.network import TransformerConfig
from swiftmask.models.maskgit.training import MaskedBatch

CONFIG = TransformerConfig(
    width=32, depth=1, num_heads=2, mlp_width=32, codebook_size=16, num_classes=4, grid=16
)


@pytest.mark.parametrize("least", [0.0, 0.7])
def test_shares_are_maskgits_stretched_above_the_least(least: float) -> None:
    codes_BL = torch.zeros(2000, 256, dtype=torch.long)
    labels_B = torch.zeros(2000, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    batch = MaskedBatch.draw(codes_BL, labels_B, CONFIG, generator, least=least)
    share_B = batch.masked_BL.float().mean(1)
    assert share_B.mean().item() == pytest.approx(least + (1 - least) * 2 / torch.pi, abs=0.01)
    assert share_B.min() > least - 0.1  # a share of 0.7 masks 0.7 of 256 tokens give or take 0.03
    assert share_B.max() > 0.98
    assert (share_B < 0.5).any() == (least == 0.0)
    assert (batch.ids_BT[:, :-1] == CONFIG.mask_id).equal(batch.masked_BL)
