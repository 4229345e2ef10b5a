"""The VQGAN of Meissonic (that of aMUSEd, arXiv 2401.01808): pictures <-> a grid of codes.

The network is diffusers' `VQModel`, imported when one is built; what is ours is looking codes up, finding the
nearest, and the range of pixels, which is [0, 1] inside and outside. Left out: its perceptual and adversarial
losses, which belong to whoever trains it.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from swiftmask.models.meissonic.libraries import library


@dataclass(frozen=True, slots=True, kw_only=True)
class VQConfig:
    """Sizes of the codec, under their upstream names.

    Attributes:
        vq_embed_dim: channels of a code; None is `latent_channels`.
    """

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    num_vq_embeddings: int
    vq_embed_dim: int | None = None
    norm_num_groups: int = 32
    mid_block_add_attention: bool = False

    @property
    def downscale(self) -> int:
        """Pixels per code, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


class VQCodec(nn.Module):
    """Codes of pictures, and pictures of codes.

    Args:
        vq: diffusers' `VQModel` of these sizes (`build_codec`).
    """

    def __init__(self, config: VQConfig, vq: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.vq: Any = vq

    def decode(self, codes_BHW: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1], float32, of a grid of codes."""
        latent_BCHW = self.vq.quantize.embedding(codes_BHW).permute(0, 3, 1, 2)
        pixels_B3HW = _run(self.vq.decoder, _run(self.vq.post_quant_conv, latent_BCHW))
        return pixels_B3HW.float().clamp(0.0, 1.0)

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Codes [B, H, W] (int64) of pictures in [0, 1]: the nearest of the codebook, by squared distance."""
        codebook_KC = self.vq.quantize.embedding.weight
        latent_BCHW = _run(self.vq.quant_conv, _run(self.vq.encoder, images_B3HW))
        latent_BHWC, codebook_KC = latent_BCHW.permute(0, 2, 3, 1).float(), codebook_KC.float()
        return (codebook_KC.square().sum(1) - 2.0 * latent_BHWC @ codebook_KC.T).argmin(-1)


def build_codec(config: VQConfig) -> VQCodec:
    """A codec of these sizes with random weights. Errors: ValueError if diffusers is not installed."""
    levels = len(config.block_out_channels)
    vq = library("diffusers").VQModel(
        **asdict(config),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        lookup_from_codebook=True,
        force_upcast=True,
    )
    return VQCodec(config, vq.eval())


def _run(module: nn.Module, x_BCHW: Tensor) -> Tensor:
    """The module's output; in float32 where its weights are float16, in which this network overflows."""
    dtype = next(module.parameters()).dtype
    if dtype != torch.float16:
        return module(x_BCHW.to(dtype))
    weights = {name: parameter.float() for name, parameter in module.named_parameters()}
    return functional_call(module, weights, (x_BCHW.float(),))
