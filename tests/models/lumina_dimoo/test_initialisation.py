"""The start of small backbones."""

import pytest
import torch

from swiftmask.models.lumina_dimoo.network import Backbone, BackboneConfig
from swiftmask.models.lumina_dimoo.training import initialise

SIZES = BackboneConfig(width=64, depth=2, num_heads=2, mlp_width=96, vocabulary_size=40)


def test_codes_start_like_their_latents_where_read_and_where_predicted() -> None:
    codebook_VC = torch.randn(16, 3)
    codebook_VC[5] = codebook_VC[2] + 0.01
    transformer = initialise(Backbone(SIZES), codebook_VC, first_code=20).model.transformer
    for rows_VD in (transformer.wte.weight[20:36], transformer.ff_out.weight[20:36]):
        distance_VV = torch.cdist(rows_VD, rows_VD).fill_diagonal_(torch.inf)
        assert distance_VV[2].argmin() == 5
    assert transformer.wte.weight.std().item() == pytest.approx(1, abs=0.1)


def test_first_predictions_are_nearly_uniform() -> None:
    backbone = initialise(Backbone(SIZES), torch.randn(16, 3), first_code=20)
    ids_1T = torch.arange(10)[None]
    log_probs = backbone.logits(backbone(ids_1T, ids_1T), 20, 16).log_softmax(-1)
    assert (log_probs - torch.tensor(1 / 16).log()).abs().max() < 1
