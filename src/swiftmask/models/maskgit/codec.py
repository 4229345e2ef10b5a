"""The VQGAN of taming-transformers (Esser et al., arXiv 2012.09841): images <-> a grid of codes.

Module names are those of the released `last.ckpt`, so its weights load without a key map. Left out: dropout
(the released model has none), `double_z`, and the perceptual and adversarial losses, which belong to whoever
trains it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swiftmask.core.codebook import nearest
from swiftmask.core.convolutions import Decoder, Encoder, check_levels, to_images, to_pixels_in
from swiftmask.core.ranges import check_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class VQGANConfig:
    """Sizes of the codec, under their upstream names.

    Attributes:
        image_size: side of the images shown, resized to and from `resolution`; None resizes nothing.
        num_groups: of every group norm. Upstream always has 32; a codec of few channels wants fewer, since a
            norm over one channel alone erases flat colours and spreads them over the image's codes.
    """

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    z_channels: int
    n_embed: int
    embed_dim: int
    in_channels: int = 3
    out_ch: int = 3
    image_size: int | None = None
    num_groups: int = 32

    def __post_init__(self) -> None:
        check_fields(self)
        check_levels(self, self.attn_resolutions)

    @property
    def downscale(self) -> int:
        """Pixels of the nominal resolution per code, along one side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self) -> int:
        """Codes along one side at the nominal resolution."""
        return self.resolution // self.downscale


class _Codebook(nn.Module):
    """Only lends its name to the keys."""

    def __init__(self, num_codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, width)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)


class VQGAN(nn.Module):
    """Encoder, codebook, decoder; read from released files, and not trained (recipes/tokenizer.py)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(
            config, channels_out=config.z_channels, attn_resolutions=config.attn_resolutions
        )
        self.decoder = Decoder(config, attn_resolutions=config.attn_resolutions)
        self.quantize = _Codebook(config.n_embed, config.embed_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    @property
    def codebook_VC(self) -> Tensor:  # noqa: N802 - axes in the name
        """The vectors of the codes."""
        return self.quantize.embedding.weight

    @property
    def dtype(self) -> torch.dtype:
        return self.quantize.embedding.weight.dtype

    def encode_latent(self, pixels_B3HW: Tensor) -> Tensor:
        """Latent `z_BCHW` before quantisation, of pixels in [-1, 1] at the codec's own resolution."""
        return self.quant_conv(self.encoder(pixels_B3HW.to(self.dtype)))

    def decode_latent(self, z_BCHW: Tensor) -> Tensor:
        """Pixels `_B3HW`, nominally in [-1, 1] and not clamped."""
        return self.decoder(self.post_quant_conv(z_BCHW.to(self.dtype)))

    def encode_code(self, pixels_B3HW: Tensor) -> Tensor:
        """Codes `codes_BHW` (int64) of pixels in [-1, 1] at the codec's own resolution."""
        return nearest(self.encode_latent(pixels_B3HW).permute(0, 2, 3, 1), self.codebook_VC)

    def decode_code(self, codes_BHW: Tensor) -> Tensor:
        """Pixels `_B3HW` of codes, as upstream: nominally in [-1, 1], not clamped, not resized."""
        return self.decode_latent(self.quantize.embedding(codes_BHW).permute(0, 3, 1, 2))

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Codes `codes_BHW` (int64) of images in [0, 1]."""
        return self.encode_code(to_pixels_in(images_B3HW, self.config))

    def decode(self, codes_BHW: Tensor) -> Tensor:
        """Images `_B3HW` (float32, clamped to [0, 1]) of a grid of codes."""
        return to_images(self.decode_code(codes_BHW), self.config).clamp(0.0, 1.0)
