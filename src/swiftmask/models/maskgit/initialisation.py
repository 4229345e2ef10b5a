"""A start for small transformers trained for an hour instead of a week.

The released model starts from normal weights of deviation 0.02, which suits its width of 768 and leaves a
width of 160 with nearly uniform attention for hundreds of steps; its positions start unrelated to each
other, and its codes to what they look like. All three can be told beforehand (what it saves: docs/log.md).
"""

import torch
from torch import Tensor, nn

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
    transformer.pos_emb[0, : config.num_tokens] = _spread(_grid_waves(config.grid, config.width))
    centred_KC = codebook_KC - codebook_KC.mean(0)
    projection_CD = torch.randn(codebook_KC.shape[1], config.width)
    transformer.tok_emb.weight[: config.codebook_size] = _spread(centred_KC @ projection_CD)
    return transformer


def _spread(embedding_XD: Tensor) -> Tensor:
    return embedding_XD * (_DEVIATION / embedding_XD.std())


def _grid_waves(grid: int, width: int) -> Tensor:
    """Sines and cosines of row and column, a quarter of the width each: [grid * grid, width].

    Wavelengths fall geometrically from four grids to two places.
    """
    count = -(-width // 4)
    waves = torch.logspace(torch.tensor(0.5 / grid).log2(), torch.tensor(1.0).log2(), count, base=2)
    angle_PW = torch.pi * torch.arange(grid)[:, None] * waves
    waves_PX = torch.cat([angle_PW.sin(), angle_PW.cos()], dim=1)
    rows, columns = waves_PX.repeat_interleave(grid, dim=0), waves_PX.repeat(grid, 1)
    return torch.cat([rows, columns], dim=1)[:, :width]
