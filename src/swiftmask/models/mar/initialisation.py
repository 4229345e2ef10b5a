"""A start for small MARs trained for an hour instead of a week.

Upstream's position tables start at random with a deviation of 0.02, beside projected tokens ten times as
large: for a long time the encoder cannot tell where a token lies. Here they know rows and columns, and are
heard. Classes start as the sum of their attributes.
"""

import torch
from torch import Tensor

from swiftmask.core.embeddings import attribute_sums
from swiftmask.core.positions import grid_waves
from swiftmask.models.mar.network import Network

_LOUDNESS = 0.2
"""Deviation of the position tables; a projected token of unit variance has about as much."""

_CLASS_DEVIATION = 0.1
"""Five times that of the buffer rows it is added to: their norm leaves the class in charge."""


@torch.no_grad()
def initialise(network: Network, attributes_NA: Tensor) -> Network:
    """Position tables of encoder, decoder and head that know rows and columns, and classes that are the sum
    of their attributes; in place.

    Args:
        attributes_NA: integers, A for each class, such as its shape and its colour.
    """
    config = network.config
    for table_1TD in (
        network.encoder_pos_embed_learned,
        network.decoder_pos_embed_learned,
        network.diffusion_pos_embed_learned,
    ):
        waves_LD = grid_waves(config.grid, table_1TD.shape[-1])
        table_1TD[0, -config.num_tokens :] = waves_LD * (_LOUDNESS / waves_LD.std())
    network.class_emb.weight.copy_(_CLASS_DEVIATION * attribute_sums(attributes_NA, config.encoder_width))
    return network
