"""Lumina-DiMOO's picture tokenizer, aMUSEd's VQ-GAN (Patil et al., arXiv 2401.01808), as diffusers has it.

Pictures are in [0, 1] on both sides, without the usual shift to [-1, 1]. Upstream keeps it in float32 beside
a bfloat16 backbone.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swiftmask.models.lumina_dimoo.extras import require


@dataclass(frozen=True, slots=True, kw_only=True)
class VQConfig:
    """Sizes, under the names of diffusers; defaults are the released ones. Each width but the first halves
    the picture.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 256, 512, 768)
    layers_per_block: int = 2
    latent_channels: int = 64
    num_vq_embeddings: int = 8192
    norm_num_groups: int = 32
    vq_embed_dim: int | None = None

    @property
    def patch(self) -> int:
        """Pixels of a token's side."""
        return 2 ** (len(self.block_out_channels) - 1)


class VQCodec(nn.Module):
    """Pictures to codes and back. Errors: ValueError if diffusers is not installed."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        levels = len(config.block_out_channels)
        self.vq: Any = require("diffusers", "the picture tokenizer of Lumina-DiMOO").VQModel(
            **asdict(config),
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
            act_fn="silu",
        )

    def decode(self, codes_BHW: Tensor) -> Tensor:
        """Pictures [B, 3, H * patch, W * patch] in [0, 1]."""
        shape = (*codes_BHW.shape, self.vq.quantize.vq_embed_dim)
        images_B3HW, _ = self.vq.decode(
            codes_BHW.flatten(), force_not_quantize=True, return_dict=False, shape=shape
        )
        return images_B3HW.float().clamp(0, 1)

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """The nearest codes [B, H, W] of pictures in [0, 1]."""
        weight = self.vq.quantize.embedding.weight
        (latents_BCHW,) = self.vq.encode(images_B3HW.to(weight.dtype), return_dict=False)
        flat_XC = latents_BCHW.permute(0, 2, 3, 1).flatten(0, 2)
        nearest_X = torch.cdist(flat_XC, weight).argmin(dim=-1)
        return nearest_X.unflatten(0, (len(images_B3HW), *latents_BCHW.shape[2:]))
