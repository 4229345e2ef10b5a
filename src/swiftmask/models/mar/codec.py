"""MAR's KL-16 autoencoder (Rombach et al., arXiv 2112.10752, in MAR's own training): images <-> latents.

Module names are those of the released `kl16.ckpt`, so its weights load without a key map. Left out: dropout
(the released model has none) and the perceptual and adversarial losses, which belong to whoever trains it.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from swiftmask.core.convolutions import Decoder, Encoder, check_levels, to_images, to_pixels_in
from swiftmask.core.ranges import check_fields

RELEASED_SCALE = 0.2325
"""Brings the released codec's latents to unit variance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KLConfig:
    """Sizes of the codec, under their upstream names.

    Attributes:
        attn_resolutions, decoder_attn_resolutions: nominal resolutions with attention after each residual
            block; the released decoder has none.
        scale: latents are multiplied by it on their way to the network, so that they have unit variance.
        image_size: side of the images shown, resized to and from `resolution`; None resizes nothing.
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
        check_fields(self)
        check_levels(self, (*self.attn_resolutions, *self.decoder_attn_resolutions))

    @property
    def downscale(self) -> int:
        """Pixels of the nominal resolution per latent, along one side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self) -> int:
        """Latents along one side at the nominal resolution."""
        return self.resolution // self.downscale


@dataclass(frozen=True, slots=True)
class Posterior:
    """A Gaussian per latent channel, unscaled: what the encoder says about an image."""

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


class KLCodec(nn.Module):
    """Encoder and decoder of a Gaussian latent.

    `encode` and `decode` speak scaled latents and images in [0, 1]; `moments` and `decode_latent` are
    upstream's, with unscaled latents and pixels in [-1, 1].
    """

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(
            config, channels_out=2 * config.z_channels, attn_resolutions=config.attn_resolutions
        )
        self.decoder = Decoder(config, attn_resolutions=config.decoder_attn_resolutions)
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
        return self.decode_unclamped(latent_BCHW).clamp(0.0, 1.0)

    def decode_unclamped(self, latent_BCHW: Tensor) -> Tensor:
        """The same before clamping, so that gradients pass everywhere (reward tuning)."""
        return to_images(self.decode_latent(latent_BCHW / self.config.scale), self.config)

    def to_pixels_in(self, images_B3HW: Tensor) -> Tensor:
        """What the encoder reads: resized if asked, in [-1, 1]."""
        return to_pixels_in(images_B3HW, self.config)
