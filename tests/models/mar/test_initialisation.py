"""The start of small MARs: positions know their neighbours, classes what they share."""

import pytest
import torch
from torch.nn import functional as F

from swiftmask.models.mar.network import Network, NetworkConfig
from swiftmask.models.mar.training import initialise


@pytest.fixture(scope="module")
def network() -> Network:
    """Six classes of three shapes and two colours."""
    torch.manual_seed(0)
    sizes = NetworkConfig(
        encoder_width=256,
        encoder_depth=1,
        encoder_heads=2,
        decoder_width=64,
        decoder_depth=1,
        decoder_heads=2,
        channels=4,
        grid=4,
        num_classes=6,
        head_width=16,
        head_depth=1,
        buffer_size=2,
    )
    return initialise(
        Network(sizes), torch.tensor([[shape, colour] for shape in range(3) for colour in range(2)])
    )


def test_classes_resemble_each_other_in_what_they_share(network: Network) -> None:
    class_ND = network.class_emb.weight
    likeness_NN = F.cosine_similarity(class_ND[:, None], class_ND[None], dim=-1)
    assert likeness_NN[0, 1] > 0.3  # the same shape
    assert likeness_NN[0, 2] > 0.3  # the same colour
    assert abs(likeness_NN[0, 3]) < 0.2  # neither


def test_positions_know_their_neighbours_in_encoder_and_decoder(network: Network) -> None:
    for table_1TD in (network.encoder_pos_embed_learned, network.decoder_pos_embed_learned):
        position_LD = table_1TD[0, -16:]
        likeness_LL = F.cosine_similarity(position_LD[:, None], position_LD[None], dim=-1)
        assert likeness_LL[0, 1] > likeness_LL[0, 15]
