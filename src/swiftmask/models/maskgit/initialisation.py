"""A start for small transformers trained for an hour instead of a week.

The released model starts from normal weights of deviation 0.02, which suits its width of 768 and leaves a
width of 160 with nearly uniform attention for hundreds of steps; its positions start unrelated to each
other, and its codes to what they look like. All three can be told beforehand (what it saves: docs/log.md).
"""

import torch
from torch import Tensor, nn

from swiftmask.core.positions import grid_waves
from swiftmask.models.maskgit.network import Transformer

_DEVIATION = 0.02
"""Of embeddings, as upstream: the tied head turns them into logits."""


@torch.no_grad()
def initialise(transformer: Transformer, codebook_KC: Tensor) -> Transformer:
    """Weights of unit gain, positions that know rows and columns, and codes that resemble their latents.

    Args:
        codebook_KC: the tokenizer's codebook, in the order of the codes.
    """
    for name, parameter in transformer.named_parameters():
        if parameter.ndim == 2 and name not in ("tok_emb.weight", "bias"):
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    config = transformer.config
    transformer.pos_emb[0, : config.num_tokens] = _spread(grid_waves(config.grid, config.width))
    centred_KC = codebook_KC - codebook_KC.mean(0)
    projection_CD = torch.randn(codebook_KC.shape[1], config.width)
    transformer.tok_emb.weight[: config.codebook_size] = _spread(centred_KC @ projection_CD)
    return transformer


def _spread(embedding_XD: Tensor) -> Tensor:
    return embedding_XD * (_DEVIATION / embedding_XD.std())
