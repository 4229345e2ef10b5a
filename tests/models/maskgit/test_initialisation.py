"""The start of small transformers: what can be told beforehand is there before training."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from swiftmask.models.maskgit.initialisation import initialise
from swiftmask.models.maskgit.network import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    """Six classes of three shapes and two colours; codes 0 and 1 look alike."""
    torch.manual_seed(0)
    sizes = TransformerConfig(
        width=256, depth=1, num_heads=2, mlp_width=32, codebook_size=4, num_classes=6, grid=4
    )
    codebook_KC = torch.eye(4, 8)
    codebook_KC[1] = codebook_KC[0]
    attributes_NA = torch.tensor([[shape, colour] for shape in range(3) for colour in range(2)])
    return initialise(Transformer(sizes), codebook_KC, attributes_NA, tuple)


def test_classes_resemble_each_other_in_what_they_share(transformer: Transformer) -> None:
    first = transformer.config.first_class_id
    class_ND = transformer.tok_emb.weight[first : first + 6]
    likeness_NN = F.cosine_similarity(class_ND[:, None], class_ND[None], dim=-1)
    assert likeness_NN[0, 1] > 0.3  # the same shape
    assert likeness_NN[0, 2] > 0.3  # the same colour
    assert abs(likeness_NN[0, 3]) < 0.2  # neither


def test_codes_that_look_alike_start_alike(transformer: Transformer) -> None:
    code_KD = transformer.tok_emb.weight[:4]
    torch.testing.assert_close(code_KD[0], code_KD[1])
    assert not torch.allclose(code_KD[0], code_KD[2], atol=1e-3)


def test_positions_know_their_neighbours(transformer: Transformer) -> None:
    position_LD = transformer.pos_emb[0, :16]
    likeness_LL = F.cosine_similarity(position_LD[:, None], position_LD[None], dim=-1)
    assert likeness_LL[0, 1] > likeness_LL[0, 15]


@pytest.fixture(scope="module")
def composed() -> Transformer:
    """Four concepts in two styles. Images of concepts 0 and 1 are alike; concept 3 has none."""
    torch.manual_seed(0)
    attributes_NA = torch.tensor([[concept, style] for concept in range(4) for style in range(2)])
    sizes = TransformerConfig(
        width=64,
        depth=3,
        num_heads=2,
        mlp_width=64,
        codebook_size=16,
        num_classes=8,
        grid=8,
        class_attributes=(4, 2),
    )
    looks_8HW = torch.randint(16, (4, 1, 8, 8)).expand(4, 2, 8, 8).flatten(0, 1).clone()
    looks_8HW[2:4] = looks_8HW[:2]
    trained = [(torch.arange(4), looks_8HW[:4]), (torch.arange(4, 6), looks_8HW[4:6])]
    return initialise(Transformer(sizes), torch.randn(16, 4), attributes_NA, lambda: trained)


def test_composed_classes_start_as_their_images_look(composed: Transformer) -> None:
    first = composed.config.first_class_id
    concept_4D = composed.tok_emb.weight[first : first + 4]
    likeness_44 = F.cosine_similarity(concept_4D[:, None], concept_4D[None], dim=-1)
    assert likeness_44[0, 1] > 0.6
    assert likeness_44[0, 2] < 0.2
    assert concept_4D.isfinite().all()  # concept 3, which no image shows, too


def test_a_head_of_each_block_starts_by_reading_the_class(composed: Transformer) -> None:
    config = composed.config
    ids_BT = torch.randint(config.mask_id + 1, (8, config.sequence_length))
    ids_BT[:, -1] = config.first_class_id + torch.arange(8)
    x_BTD = composed.first_layer(composed.embed(ids_BT))
    for block in composed.transformer.layers:
        attention: Any = next(block.children())
        weights = attention.fn.mha
        q_BTD, k_BTD, _ = F.linear(attention.norm(x_BTD), weights.in_proj_weight, weights.in_proj_bias).chunk(
            3, dim=-1
        )
        logits_BNTT = q_BTD.unflatten(-1, (2, -1)).transpose(1, 2) @ k_BTD.unflatten(-1, (2, -1)).permute(
            0, 2, 3, 1
        )
        share_N = (logits_BNTT / 32**0.5).softmax(-1)[..., -1].mean((0, 2))
        assert share_N[0] > 0.2
        assert share_N[1] < 0.1  # other heads start as they are, near 1/65
        x_BTD = block(x_BTD)
