"""The VQGAN of aMUSEd (Patil et al., arXiv 2401.01808): images <-> a grid of codes.

Meissonic and Lumina-DiMOO both draw through it. The network is diffusers' `VQModel`, imported when one is
built; what is ours is looking codes up, finding the nearest, and the range of pixels, which is [0, 1] inside
and outside, without the usual shift to [-1, 1]. Left out: its perceptual and adversarial losses, which belong
to whoever trains it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from swiftmask.core.codebook import nearest
from swiftmask.core.files import load_strict
from swiftmask.core.optional import library
from swiftmask.core.ranges import check_fields
from swiftmask.core.reading import State
from swiftmask.core.settings import first_line


@dataclass(frozen=True, slots=True, kw_only=True)
class VQConfig:
    """Sizes of the codec, under the names of diffusers.

    Attributes:
        block_out_channels: each width but the first halves the image.
        vq_embed_dim: channels of a code; None is `latent_channels`.
    """

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    num_vq_embeddings: int
    vq_embed_dim: int | None = None
    norm_num_groups: int = 32
    mid_block_add_attention: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.block_out_channels or any(w % self.norm_num_groups for w in self.block_out_channels):
            raise ValueError(
                f"block_out_channels must be multiples of norm_num_groups = {self.norm_num_groups}, got "
                f"{self.block_out_channels}"
            )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], *, source: str) -> Self:
        """From diffusers' `config.json` or our record of it; what else stands there is ignored.

        Errors: ValueError saying that `source` is no config of a VQModel, if a size is missing.
        """
        try:
            sizes = {size.name: settings[size.name] for size in fields(cls) if size.name in settings}
            sizes["block_out_channels"] = tuple(sizes["block_out_channels"])
            return cls(**sizes)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{source} is no config of a VQModel ({first_line(error)})") from error

    @property
    def downscale(self) -> int:
        """Pixels per code, along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


class VQCodec(nn.Module):
    """Codes of images, and images of codes.

    Args:
        vq: diffusers' `VQModel` of these sizes (`build_vq_codec`).
    """

    def __init__(self, config: VQConfig, vq: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.vq: Any = vq

    @property
    def codebook_VC(self) -> Tensor:  # noqa: N802 - axes in the name
        """The vectors of the codes."""
        return self.vq.quantize.embedding.weight

    def decode(self, codes_BHW: Tensor) -> Tensor:
        """Images [B, 3, H * downscale, W * downscale] in [0, 1], float32, of a grid of codes."""
        latent_BCHW = self.vq.quantize.embedding(codes_BHW).permute(0, 3, 1, 2)
        pixels_B3HW = _run(self.vq.decoder, _run(self.vq.post_quant_conv, latent_BCHW))
        return pixels_B3HW.float().clamp(0.0, 1.0)

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Codes [B, H / downscale, W / downscale] (int64) of images in [0, 1]: the nearest of the codebook,
        by squared distance.
        """
        latent_BCHW = _run(self.vq.quant_conv, _run(self.vq.encoder, images_B3HW))
        return nearest(latent_BCHW.permute(0, 2, 3, 1), self.codebook_VC)


def build_vq_codec(config: VQConfig) -> VQCodec:
    """A codec of these sizes with random weights, in eval mode.

    Errors: ValueError if diffusers is not installed.
    """
    levels = len(config.block_out_channels)
    vq = library("diffusers", "the VQGAN codec").VQModel(
        **asdict(config),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        lookup_from_codebook=True,
        force_upcast=True,
    )
    return VQCodec(config, vq).eval()


def load_vq_codec(config: VQConfig, state: State, *, source: str) -> VQCodec:
    """A codec with the weights of diffusers' file, frozen, as float32 and in eval mode.

    Errors: ValueError naming the first missing, unexpected and misshapen keys.
    """
    with torch.device("meta"):
        codec = build_vq_codec(config)
    load_strict(codec.vq, state, source=source)
    return codec


def _run(module: nn.Module, x_BCHW: Tensor) -> Tensor:
    """The module's output; in float32 where its weights are float16, in which this network overflows."""
    dtype = next(module.parameters()).dtype
    if dtype != torch.float16:
        return module(x_BCHW.to(dtype))
    weights = {name: parameter.float() for name, parameter in module.named_parameters()}
    return functional_call(module, weights, (x_BCHW.float(),))
