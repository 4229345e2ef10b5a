"""A tiny MAR whose weights are all random: released initialisation has zeros where a mistake would hide."""

import pytest
import torch

from swiftmask.models.mar import MAR
from swiftmask.models.mar.codec import KLCodec, KLConfig
from swiftmask.models.mar.network import Network, NetworkConfig

SIZES = NetworkConfig(
    encoder_width=32,
    encoder_depth=2,
    encoder_heads=4,
    decoder_width=48,
    decoder_depth=2,
    decoder_heads=4,
    channels=4,
    grid=4,
    num_classes=5,
    head_width=24,
    head_depth=2,
    buffer_size=3,
)
CODEC = KLConfig(
    ch=16,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    resolution=8,
    z_channels=4,
    num_groups=8,
    scale=0.5,
)


def random_weights(network: Network) -> Network:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


@pytest.fixture
def sizes() -> NetworkConfig:
    return SIZES


@pytest.fixture
def network() -> Network:
    return random_weights(Network(SIZES)).eval()


@pytest.fixture
def codec() -> KLCodec:
    return KLCodec(CODEC).eval()


@pytest.fixture
def model(network: Network, codec: KLCodec) -> MAR:
    return MAR(network, codec)
