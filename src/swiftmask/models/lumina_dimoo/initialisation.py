"""A start for small backbones trained for two hours instead of months.

Blocks start as upstream's ("mitchell": unit gain, less in deeper blocks). Two things are told beforehand:
codes that look alike start alike, where they are read and where they are predicted; and embeddings are as
large as what blocks add to them, so that no token is forgotten on the way. What it saves has not been
measured.
"""

import torch
from torch import Tensor, nn

from swiftmask.core.embeddings import codes_like_latents
from swiftmask.models.lumina_dimoo.network import Backbone

_HEAD_DEVIATION = 0.02
"""Of the head's rows: first predictions are nearly uniform."""


@torch.no_grad()
def initialise(backbone: Backbone, codebook_VC: Tensor, *, first_code: int) -> Backbone:
    """Embeddings of deviation one, and codes that resemble their latents; in place.

    Args:
        codebook_VC: the codec's codebook, in the order of the codes.
        first_code: id of code 0.
    """
    transformer = backbone.model.transformer
    rows_VD = codes_like_latents(codebook_VC, backbone.config.width)
    codes = slice(first_code, first_code + len(rows_VD))
    nn.init.normal_(transformer.wte.weight)
    nn.init.normal_(transformer.ff_out.weight, std=_HEAD_DEVIATION)
    transformer.wte.weight[codes] = rows_VD
    transformer.ff_out.weight[codes] = _HEAD_DEVIATION * rows_VD
    return backbone
