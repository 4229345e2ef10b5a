"""What can be told beforehand is there before training: for small transformers trained for an hour instead
of a week.

The released model starts from normal weights of deviation 0.02, which suits its width of 768 and leaves a
width of 160 with nearly uniform attention for hundreds of steps. Its positions start unrelated to each other,
its codes to what they look like, and its classes to what they have in common. All can be told beforehand
(docs/log.md).

Classes that are composed of attributes are usually many, and each is seen rarely. A class is one token among
those of the image, so uniform attention hardly reads it. Vectors of attributes therefore start as what their
images look like, and one head of each block starts by looking at the class.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swiftmask.core.embeddings import attribute_rows, attribute_sums, codes_like_latents, rows_like
from swiftmask.core.positions import grid_waves
from swiftmask.core.trainable import LabelledRows
from swiftmask.models.maskgit.network import Transformer

_DEVIATION = 0.02
"""Of embeddings, as upstream: the tied head turns them into logits."""

_CLASS_DEVIATION = 0.1
"""Of class embeddings, which no head reads: far enough apart for training not to wipe out what they share."""

_LOOKS_SIDE = 8
"""Latents of images are averaged to this many squared, for what a class looks like."""

_CLASS_LOGIT = 5.5
"""How far the class's attention logit lies above those of tokens: about half of the attention to 257 keys."""


@torch.no_grad()
def initialise(
    transformer: Transformer, codebook_KC: Tensor, attributes_NA: Tensor, trained: LabelledRows
) -> Transformer:
    """Weights of unit gain, positions that know rows and columns, codes that resemble their latents, and
    classes that are the sum of their attributes.

    Args:
        codebook_KC: the tokenizer's codebook, in the order of the codes.
        attributes_NA: integers, A for each class, such as its shape and its colour.
        trained: labels [B] and codes [B, H, W] of the images that are trained on; read if classes are
            composed.
    """
    for name, parameter in transformer.named_parameters():
        if parameter.ndim == 2 and name not in ("tok_emb.weight", "bias"):
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    config = transformer.config
    waves_LD = grid_waves(config.grid, config.width)
    transformer.pos_emb[0, : config.num_tokens] = _DEVIATION * waves_LD / waves_LD.std()
    rows_KD = codes_like_latents(codebook_KC, config.width)
    transformer.tok_emb.weight[: config.codebook_size] = _DEVIATION * rows_KD
    class_SD = transformer.tok_emb.weight[config.first_class_id : -1]
    if config.class_attributes:
        sizes = config.class_attributes
        rows_NA = attribute_rows(attributes_NA)
        transformer.get_buffer("class_rows").copy_(rows_NA)
        looks_SF = _looks(trained(), codebook_KC, rows_NA, sum(sizes))
        tables = [rows_like(looks_VF, config.width) for looks_VF in looks_SF.split(sizes)]
        class_SD.copy_(_CLASS_DEVIATION * len(sizes) ** -0.5 * torch.cat(tables))
        _look_at_class(transformer)
    else:
        class_SD.copy_(_CLASS_DEVIATION * attribute_sums(attributes_NA, config.width))
    return transformer


def _looks(
    trained: Iterable[tuple[Tensor, Tensor]], codebook_KC: Tensor, rows_NA: Tensor, number: int
) -> Tensor:
    """Mean latents of the images that have each value of each attribute, small: [S, F]. Values without an
    image look like the mean of all.
    """
    sums_SF = codebook_KC.new_zeros(number, codebook_KC.shape[1] * _LOOKS_SIDE**2)
    count_S1 = codebook_KC.new_zeros(number, 1)
    for labels_B, codes_BHW in trained:
        latents_BCHW = codebook_KC[codes_BHW.long()].permute(0, 3, 1, 2)
        looks_BF = F.adaptive_avg_pool2d(latents_BCHW, _LOOKS_SIDE).flatten(1)
        for rows_B in rows_NA[labels_B].unbind(1):
            sums_SF.index_add_(0, rows_B, looks_BF)
            count_S1.index_add_(0, rows_B, torch.ones_like(looks_BF[:, :1]))
    mean_F = sums_SF.sum(0) / count_S1.sum().clamp(min=1)
    return torch.where(count_S1 > 0, sums_SF / count_S1.clamp(min=1), mean_F)


def _look_at_class(transformer: Transformer) -> None:
    """The first head of each block asks every position for what tells the class token's key from others."""
    config = transformer.config
    width, head = config.width, config.width // config.num_heads
    transformer.pos_emb[0, -1].normal_(std=_CLASS_DEVIATION)
    labels_B = torch.arange(min(config.num_classes, 64))
    ids_BT = torch.full((len(labels_B), config.sequence_length), config.mask_id)
    codes_BL = torch.randint(config.codebook_size, (len(labels_B), config.num_tokens))
    ids_BT[::2, :-1] = codes_BL[::2]  # half of them as they are at the end of a decode
    ids_BT[:, -1] = config.first_class_id + labels_B
    x_BTD = transformer.first_layer(transformer.embed(ids_BT))
    for block in transformer.transformer.layers:
        attention: Any = next(block.children())
        weights = attention.fn.mha
        keys_BTH = F.linear(attention.norm(x_BTD), weights.in_proj_weight[width : width + head])
        apart_H = keys_BTH[:, -1].mean(0) - keys_BTH[:, :-1].mean((0, 1))
        weights.in_proj_bias[:head] = _CLASS_LOGIT * head**0.5 * apart_H / apart_H.square().sum()
        x_BTD = block(x_BTD)
