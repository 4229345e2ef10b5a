"""MAR's KL-16 autoencoder (Rombach et al., arXiv 2112.10752, in MAR's own training): pictures <-> latents.

Module names are those of the released `kl16.ckpt`, so its weights load without a key map. Left out: dropout
(the released model has none) and the perceptual and adversarial losses, which belong to whoever trains it.
The convolutional blocks are those of `models/maskgit/codec.py` once more: a model knows no other model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RELEASED_SCALE = 0.2325
"""Brings the released codec's latents to unit variance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KLConfig:
    """Sizes of the codec, under their upstream names.

    Attributes:
        attn_resolutions, decoder_attn_resolutions: nominal resolutions with attention after each residual
            block; the released decoder has none.
        scale: latents are multiplied by it on their way to the network, so that they have unit variance.
        image_size: side of the pictures shown, resized to and from `resolution`; None resizes nothing.
        num_groups: of every group norm. Upstream always has 32; a codec of few channels wants fewer.
    """

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    z_channels: int
    decoder_attn_resolutions: tuple[int, ...] = ()
    in_channels: int = 3
    out_ch: int = 3
    scale: float = RELEASED_SCALE
    image_size: int | None = None
    num_groups: int = 32

    def __post_init__(self) -> None:
        if self.ch % self.num_groups:
            raise ValueError(f"ch must be a multiple of num_groups = {self.num_groups}, got {self.ch}")
        if self.resolution % self.downscale:
            raise ValueError(f"resolution must be a multiple of {self.downscale}, got {self.resolution}")
        if self.scale <= 0:
            raise ValueError(f"scale must be positive, got {self.scale}")

    @property
    def downscale(self) -> int:
        """Pixels of the nominal resolution per latent, along one side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self) -> int:
        """Latents along one side at the nominal resolution."""
        return self.resolution // self.downscale

    @property
    def widths(self) -> list[int]:
        return [self.ch * mult for mult in self.ch_mult]


@dataclass(frozen=True, slots=True)
class Posterior:
    """A Gaussian per latent channel, unscaled: what the encoder says about a picture."""

    mean_BCHW: Tensor
    log_variance_BCHW: Tensor

    @classmethod
    def of(cls, moments_BEHW: Tensor) -> Self:
        """From the codec's moments [B, 2C, H, W] (those cached on disk, too), in float32."""
        mean_BCHW, log_variance_BCHW = moments_BEHW.float().chunk(2, dim=1)
        return cls(mean_BCHW, log_variance_BCHW.clamp(-30.0, 20.0))

    def sample(self, noise_BCHW: Tensor) -> Tensor:
        """mean + standard deviation * noise, for standard normal noise [B, C, H, W]."""
        return self.mean_BCHW + torch.exp(0.5 * self.log_variance_BCHW) * noise_BCHW

    def divergence(self) -> Tensor:
        """KL divergence from the standard normal in nats, mean over latents and channels: a scalar."""
        variance_BCHW = self.log_variance_BCHW.exp()
        return 0.5 * (self.mean_BCHW.square() + variance_BCHW - 1 - self.log_variance_BCHW).mean()


def _norm(channels: int, config: KLConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.num_groups, channels, eps=1e-6)


class _ResBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, config: KLConfig) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in, config)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _norm(channels_out, config)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        return h_BCHW + (x_BCHW if self.nin_shortcut is None else self.nin_shortcut(x_BCHW))


class _Attention(nn.Module):
    """Single-head attention over all places of the grid."""

    def __init__(self, channels: int, config: KLConfig) -> None:
        super().__init__()
        self.norm = _norm(channels, config)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.norm(x_BCHW)
        q_B1LC, k_B1LC, v_B1LC = (
            layer(h_BCHW).flatten(2).transpose(1, 2).contiguous()[:, None]
            for layer in (self.q, self.k, self.v)
        )
        out_B1LC = F.scaled_dot_product_attention(q_B1LC, k_B1LC, v_B1LC)
        return x_BCHW + self.proj_out(out_B1LC[:, 0].transpose(1, 2).unflatten(2, x_BCHW.shape[2:]))


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # Upstream pads right and bottom only; a symmetric padding=1 shifts the picture.
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where the level has it; a resampling."""

    def __init__(
        self,
        channels: Sequence[int],
        config: KLConfig,
        *,
        attention: bool,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        pairs = list(zip(channels[:-1], channels[1:], strict=True))
        self.block = nn.ModuleList(_ResBlock(*pair, config) for pair in pairs)
        self.attn = nn.ModuleList(_Attention(width, config) for _, width in pairs if attention)
        self.downsample = downsample
        self.upsample = upsample

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x_BCHW = block(x_BCHW)
            if len(self.attn):
                x_BCHW = self.attn[i](x_BCHW)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x_BCHW = resample(x_BCHW)
        return x_BCHW


class _Middle(nn.Module):
    def __init__(self, channels: int, config: KLConfig) -> None:
        super().__init__()
        self.block_1 = _ResBlock(channels, channels, config)
        self.attn_1 = _Attention(channels, config)
        self.block_2 = _ResBlock(channels, channels, config)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))


class _Encoder(nn.Module):
    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            _Level(
                [widths[i - 1] if i else config.ch] + [width] * config.num_res_blocks,
                config,
                attention=config.resolution // 2**i in config.attn_resolutions,
                downsample=_Downsample(width) if i < len(widths) - 1 else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid = _Middle(widths[-1], config)
        self.norm_out = _norm(widths[-1], config)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(x_BCHW)
        for level in self.down:
            x_BCHW = level(x_BCHW)
        return self.conv_out(F.silu(self.norm_out(self.mid(x_BCHW))))


class _Decoder(nn.Module):
    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], config)
        self.up = nn.ModuleList(
            _Level(
                [widths[min(i + 1, len(widths) - 1)]] + [width] * (config.num_res_blocks + 1),
                config,
                attention=config.resolution // 2**i in config.decoder_attn_resolutions,
                upsample=_Upsample(width) if i > 0 else None,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[0], config)
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        x_BCHW = self.mid(self.conv_in(z_BCHW))
        for level in reversed(self.up):
            x_BCHW = level(x_BCHW)
        return self.conv_out(F.silu(self.norm_out(x_BCHW)))


class KLCodec(nn.Module):
    """Encoder and decoder of a Gaussian latent.

    `encode` and `decode` speak scaled latents and pictures in [0, 1]; `moments` and `decode_latent` are
    upstream's, with unscaled latents and pixels in [-1, 1].
    """

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    def moments(self, pixels_B3HW: Tensor) -> Tensor:
        """Mean and log-variance [B, 2C, H, W] of pixels in [-1, 1] (what upstream caches on disk)."""
        return self.quant_conv(self.encoder(pixels_B3HW.to(self.dtype)))

    def decode_latent(self, latent_BCHW: Tensor) -> Tensor:
        """Pixels `_B3HW` of unscaled latents, nominally in [-1, 1] and not clamped."""
        return self.decoder(self.post_quant_conv(latent_BCHW.to(self.dtype)))

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """The mean of the latents of images in [0, 1], scaled: float32 [B, C, H, W]."""
        return Posterior.of(self.moments(self.to_pixels_in(images_B3HW))).mean_BCHW * self.config.scale

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Images `_B3HW` (float32, clamped to [0, 1]) of scaled latents."""
        images_B3HW = (self.decode_latent(latent_BCHW / self.config.scale).float() + 1.0) / 2.0
        if self.config.image_size is not None:
            images_B3HW = _resize(images_B3HW, self.config.image_size)
        return images_B3HW.clamp(0.0, 1.0)

    def to_pixels_in(self, images_B3HW: Tensor) -> Tensor:
        """What the encoder reads and a reconstruction is compared with: resized if asked, in [-1, 1]."""
        if self.config.image_size is not None:
            images_B3HW = _resize(images_B3HW, self.config.resolution).clamp(0.0, 1.0)
        return 2.0 * images_B3HW - 1.0


def _resize(images_B3HW: Tensor, size: int) -> Tensor:
    if images_B3HW.shape[-2:] == (size, size):
        return images_B3HW
    return F.interpolate(images_B3HW.float(), size=(size, size), mode="bicubic", antialias=True)
