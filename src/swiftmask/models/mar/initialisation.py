"""A start for small MARs trained for an hour instead of a week.

Upstream's position tables start at random with a deviation of 0.02, beside projected tokens ten times as
large: for a long time the encoder cannot tell where a token lies. Here they know rows and columns, and are
heard. Classes start as the sum of their attributes.
"""

from dataclasses import replace

import torch
from torch import Tensor

from swiftmask.core.embeddings import attribute_sums, other_classes
from swiftmask.core.positions import grid_waves
from swiftmask.models.mar.network import Network

_ENCODER_LOUDNESS, _DECODER_LOUDNESS, _HEAD_LOUDNESS = 0.4, 1.0, 0.2
"""Deviations of the position tables: as loud as the tokens beside them, and in the head a reminder."""

_LIKENESS = 0.9
"""Correlation of keys with queries."""

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
    for table_1TD, loudness in (
        (network.encoder_pos_embed_learned, _ENCODER_LOUDNESS),
        (network.decoder_pos_embed_learned, _DECODER_LOUDNESS),
        (network.diffusion_pos_embed_learned, _HEAD_LOUDNESS),
    ):
        waves_LD = grid_waves(config.grid, table_1TD.shape[-1])
        table_1TD[0, -config.num_tokens :] = waves_LD * (loudness / waves_LD.std())
    for block in (*network.encoder_blocks, *network.decoder_blocks):
        _look_at_the_like(block.attn.qkv.weight)  # type: ignore[union-attr]
    network.class_emb.weight.copy_(_CLASS_DEVIATION * attribute_sums(attributes_NA, config.encoder_width))
    return network


def _look_at_the_like(qkv_ED: Tensor) -> None:
    """Keys that are nearly the queries, so that rows attend to rows like themselves, their neighbours first
    ("mimetic initialisation", Trockman & Kolter, arXiv 2305.09828, section 3).
    """
    query_DD, key_DD, _ = qkv_ED.chunk(3)
    key_DD.mul_((1 - _LIKENESS**2) ** 0.5).add_(query_DD, alpha=_LIKENESS)


@torch.no_grad()
def with_classes(network: Network, attributes_NA: Tensor) -> Network:
    """A copy for other classes, whose embeddings are new."""
    classes_ND = other_classes(network.class_emb.weight, attributes_NA)
    changed = Network(replace(network.config, num_classes=len(classes_ND)))
    changed.load_state_dict(network.state_dict() | {"class_emb.weight": classes_ND})
    return changed
