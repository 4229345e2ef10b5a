"""A start for small transformers trained for an hour instead of a week.

The released model starts from normal weights of deviation 0.02, which suits its width of 768 and leaves a
width of 160 with nearly uniform attention for hundreds of steps; its positions start unrelated to each
other, its codes to what they look like, and its classes to what they have in common. All four can be told
beforehand (what it saves: docs/log.md).
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from swiftmask.core.embeddings import attribute_sums, codes_like_latents, other_classes
from swiftmask.core.positions import grid_waves
from swiftmask.models.maskgit.network import Transformer

_DEVIATION = 0.02
"""Of embeddings, as upstream: the tied head turns them into logits."""

_CLASS_DEVIATION = 0.1
"""Of class embeddings, which no head reads: far enough apart for training not to wipe out what they share."""


@torch.no_grad()
def initialise(transformer: Transformer, codebook_KC: Tensor, attributes_NA: Tensor) -> Transformer:
    """Weights of unit gain, positions that know rows and columns, codes that resemble their latents, and
    classes that are the sum of their attributes.

    Args:
        codebook_KC: the tokenizer's codebook, in the order of the codes.
        attributes_NA: integers, A for each class, such as its shape and its colour.
    """
    for name, parameter in transformer.named_parameters():
        if parameter.ndim == 2 and name not in ("tok_emb.weight", "bias"):
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    config = transformer.config
    waves_LD = grid_waves(config.grid, config.width)
    transformer.pos_emb[0, : config.num_tokens] = _DEVIATION * waves_LD / waves_LD.std()
    rows_KD = codes_like_latents(codebook_KC, config.width)
    transformer.tok_emb.weight[: config.codebook_size] = _DEVIATION * rows_KD
    first = config.first_class_id
    class_ND = transformer.tok_emb.weight[first : first + config.num_classes]
    class_ND.copy_(_CLASS_DEVIATION * attribute_sums(attributes_NA, config.width))
    return transformer


@torch.no_grad()
def with_classes(transformer: Transformer, attributes_NA: Tensor) -> Transformer:
    """A copy for other classes, whose embeddings are new; that of the null class is kept."""
    first, null = transformer.config.first_class_id, transformer.config.null_id
    state = transformer.state_dict()
    tokens_VD, bias_TV = state["tok_emb.weight"], state["bias"]
    classes_ND = other_classes(tokens_VD[first:null], attributes_NA)
    state["tok_emb.weight"] = torch.cat([tokens_VD[:first], classes_ND, tokens_VD[null:]])
    unread_TN = bias_TV.new_zeros(len(bias_TV), len(classes_ND))
    state["bias"] = torch.cat([bias_TV[:, :first], unread_TN, bias_TV[:, null:]], dim=1)
    changed = Transformer(replace(transformer.config, num_classes=len(classes_ND)))
    changed.load_state_dict(state)
    return changed
