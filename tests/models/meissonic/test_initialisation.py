"""The start of small transformers: blocks are open, and codes that look alike start alike."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from swiftmask.models.meissonic.network import Transformer, TransformerConfig
from swiftmask.models.meissonic.rotary import places_of, rotary_at
from swiftmask.models.meissonic.training import ignore_micro_conditions, initialise

CONFIG = TransformerConfig(
    num_heads=4,
    head_width=16,
    num_double_blocks=1,
    num_single_blocks=1,
    text_width=8,
    codebook_size=4,
    vocabulary_size=5,
    rotary_axes=(4, 6, 6),
    downsample=False,
)


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    """Codes 0 and 1 look alike."""
    torch.manual_seed(0)
    codebook_VC = torch.eye(4, 8)
    codebook_VC[1] = codebook_VC[0]
    return initialise(Transformer(CONFIG), codebook_VC).requires_grad_(False)


def features(
    transformer: Transformer, ids_BHW: Tensor, *, states_XTC: Tensor, pooled: float = 0.0, time: float = 0.0
) -> Tensor:
    pooled_XD = torch.full((1, CONFIG.width), pooled)
    conditioning = transformer.condition(states_XTC, pooled_XD, torch.zeros(1, 5))
    rotary = rotary_at(places_of((2, 2), states_XTC.shape[1]), CONFIG.rotary_axes)
    return transformer(ids_BHW, conditioning, torch.tensor([time]), rotary)


def test_codes_that_look_alike_are_read_and_predicted_alike(transformer: Transformer) -> None:
    for rows_VD in (transformer.embed.embeddings.weight[:4], transformer.mlm_layer.conv2.weight.flatten(1)):
        torch.testing.assert_close(rows_VD[0], rows_VD[1])
        assert F.cosine_similarity(rows_VD[0], rows_VD[2], dim=0) < 0.5


def test_first_predictions_are_nearly_uniform(transformer: Transformer) -> None:
    ids_BHW = torch.tensor([[[0, 4], [4, 2]]])
    x_XLD = features(transformer, ids_BHW, states_XTC=torch.randn(1, 3, 8))
    entropy_XL = torch.distributions.Categorical(logits=transformer.logits(x_XLD)).entropy()
    assert entropy_XL.min() > 0.95 * torch.tensor(4.0).log()


def test_every_block_is_heard_from_the_first_step_on(transformer: Transformer) -> None:
    """A masked position learns of the other tokens and of the text, but time and pooled text turn nothing."""
    one_BHW, other_BHW = torch.tensor([[[0, 4], [4, 2]]]), torch.tensor([[[3, 4], [4, 2]]])
    states_XTC = torch.randn(1, 3, 8)
    base_D = features(transformer, one_BHW, states_XTC=states_XTC)[0, 1]
    moved_D = features(transformer, other_BHW, states_XTC=states_XTC)[0, 1]
    told_D = features(transformer, one_BHW, states_XTC=states_XTC.flip(2))[0, 1]
    later_D = features(transformer, one_BHW, states_XTC=states_XTC, pooled=3.0, time=7.0)[0, 1]
    assert (moved_D - base_D).norm() > 0.05 * base_D.norm()
    assert (told_D - base_D).norm() > 0.05 * base_D.norm()
    torch.testing.assert_close(later_D, base_D)


def test_ignored_micro_conditions_change_nothing_and_learn_nothing() -> None:
    torch.manual_seed(0)
    told = ignore_micro_conditions(initialise(Transformer(CONFIG), torch.eye(4, 8)))
    states_XTC, pooled_XD = torch.randn(1, 3, 8), torch.randn(2, CONFIG.width)

    def vector(micro: float) -> Tensor:
        return told.condition(states_XTC, pooled_XD, torch.full((2, 5), micro)).vector_XD

    torch.testing.assert_close(vector(0.0), vector(1024.0), rtol=0, atol=0)
    assert not told.cond_embed.linear_1.weight.requires_grad
    assert F.silu(vector(6.0)).std(dim=0).mean() > 0.02  # prompts are still told apart
