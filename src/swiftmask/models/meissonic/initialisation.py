"""A start for small transformers trained for an hour instead of a week.

The released training script starts from what torch gives its layers. Three things are told beforehand here:
blocks compute from the first step on, without time and prompt turning them up and down at random; codes that
look alike start alike, where they are read and where they are predicted; linear layers have unit gain. Not
taken from MaskGIT's start: position tables (these positions are rotations, which learn nothing), and wider
attention weights (queries and keys are normalised here). What it saves has not been measured.
"""

import re

import torch
from torch import Tensor, nn

from swiftmask.core.embeddings import codes_like_latents
from swiftmask.models.meissonic.network import Transformer

_MODULATION = re.compile(r".*\.norm\w*\.linear\.(weight|bias)")
"""Parameters that turn time and prompt into shifts, scales and gates, in this order (network.py)."""

_EMBEDDING = "embed.embeddings.weight"

_HEAD_DEVIATION = 0.02
"""Of the head's rows: first predictions are nearly uniform."""


@torch.no_grad()
def initialise(transformer: Transformer, codebook_VC: Tensor) -> Transformer:
    """Open blocks, codes that resemble their latents, and weights of unit gain; in place.

    Every block starts as that of a plain transformer: no shift, no scale, gates of one. Gates of zero, as in
    DiT (Peebles & Xie, arXiv 2212.09748, section 3.2), would first have to open.

    Args:
        codebook_VC: the codec's codebook, in the order of the codes.
    """
    for name, parameter in transformer.named_parameters():
        if _MODULATION.fullmatch(name):
            parameter.zero_()
            if parameter.ndim == 1:
                parameter.unflatten(0, (-1, transformer.config.width))[2::3] = 1.0
        elif parameter.ndim == 2 and name != _EMBEDDING:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    rows_VD = codes_like_latents(codebook_VC, transformer.config.width)
    transformer.embed.embeddings.weight[: len(rows_VD)] = rows_VD
    transformer.mlm_layer.conv2.weight.copy_(_HEAD_DEVIATION * rows_VD[:, :, None, None])
    return transformer


@torch.no_grad()
def ignore_micro_conditions(transformer: Transformer) -> Transformer:
    """Take the micro-conditions out, for pictures that all have the same ones; in place.

    As inputs that never change, their 1,280 sinusoids are one bias that learns hundreds of times as fast as
    any other: it ran away and shut the SiLU in front of every block's shifts, scales and gates for good.
    What mixes them with the pooled prompt reads the prompt alone, and stays as it starts.
    """
    mixing, width = transformer.cond_embed.linear_1, transformer.config.width
    nn.init.normal_(mixing.weight[:, :width], std=width**-0.5)
    mixing.weight[:, width:] = 0.0
    mixing.requires_grad_(False)
    return transformer
