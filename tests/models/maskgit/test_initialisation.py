"""The start of small transformers: what can be told beforehand is there before training."""

import pytest
import torch
from torch.nn import functional as F

from swiftmask.models.maskgit.network import Transformer, TransformerConfig
from swiftmask.models.maskgit.training import initialise


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
    return initialise(Transformer(sizes), codebook_KC, attributes_NA)


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
