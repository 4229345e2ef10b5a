"""The convolutional encoder and decoder of latent diffusion (Rombach et al., arXiv 2112.10752, from VQGAN).

MaskGIT's and MAR's codecs are these with different middles; module names are those of the released files.
Attention is placed by the nominal resolution, so that a larger input keeps the same modules.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.files import count_modules, require_keys
from swiftmask.core.reading import State


class Sizes(Protocol):
    """What encoder and decoder read of a codec's config, under upstream's names."""

    @property
    def ch(self) -> int: ...
    @property
    def ch_mult(self) -> tuple[int, ...]: ...
    @property
    def num_res_blocks(self) -> int: ...
    @property
    def resolution(self) -> int: ...
    @property
    def z_channels(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def out_ch(self) -> int: ...
    @property
    def num_groups(self) -> int: ...
    @property
    def image_size(self) -> int | None: ...


def check_levels(config: Sizes, attended: Sequence[int]) -> None:
    """Errors: ValueError for sizes that do not go together, or attention where no level is."""
    if not config.ch_mult:
        raise ValueError("ch_mult must have a multiple for each level, got none")
    if config.ch % config.num_groups:
        raise ValueError(f"ch must be a multiple of num_groups = {config.num_groups}, got {config.ch}")
    downscale = 2 ** (len(config.ch_mult) - 1)
    if config.resolution % downscale:
        raise ValueError(f"resolution must be a multiple of {downscale}, got {config.resolution}")
    levels = {config.resolution // 2**i for i in range(len(config.ch_mult))}
    if not levels.issuperset(attended):
        raise ValueError(f"attention must be at some of {sorted(levels)}, got {sorted(attended)}")


def sizes_in(
    state: State, axes: Mapping[str, int], *, resolution: int, source: str, what: str
) -> dict[str, Any]:
    """Sizes from the shapes; `resolution` is nominal and only names the levels that have attention.

    Args:
        axes: of further tensors that the codec has.

    Errors: ValueError saying that `source` is not `what`.
    """
    num_levels = max(1, count_modules(state, r"encoder\.down\.(\d+)\."))
    levels = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(num_levels)]
    ends = [f"{part}.{end}.weight" for part in ("encoder", "decoder") for end in ("conv_in", "conv_out")]
    require_keys(state, {**dict.fromkeys((*ends, *levels), 4), **axes}, source, what)
    ch, in_channels = state["encoder.conv_in.weight"].shape[:2]
    return {
        "ch": ch,
        "ch_mult": tuple(state[level].shape[0] // ch for level in levels),
        "num_res_blocks": count_modules(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "attn_resolutions": attended_in(state, "encoder.down", resolution),
        "resolution": resolution,
        "z_channels": state["decoder.conv_in.weight"].shape[1],
        "in_channels": in_channels,
        "out_ch": state["decoder.conv_out.weight"].shape[0],
    }


def attended_in(state: State, part: str, resolution: int) -> tuple[int, ...]:
    """Nominal resolutions at which "encoder.down" or "decoder.up" has attention."""
    num_levels = max(1, count_modules(state, r"encoder\.down\.(\d+)\."))
    return tuple(resolution // 2**i for i in range(num_levels) if f"{part}.{i}.attn.0.q.weight" in state)


def _group_norm(num_groups: int, num_channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups, num_channels, eps=1e-6)


class _ResBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, *, num_groups: int) -> None:
        super().__init__()
        self.norm1 = _group_norm(num_groups, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _group_norm(num_groups, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        return h_BCHW + (x_BCHW if self.nin_shortcut is None else self.nin_shortcut(x_BCHW))


class _Attention(nn.Module):
    """Single-head attention over all places of the grid."""

    def __init__(self, channels: int, *, num_groups: int) -> None:
        super().__init__()
        self.norm = _group_norm(num_groups, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        B, C, H, W = x_BCHW.shape
        h_BCHW = self.norm(x_BCHW)
        q_B1LC, k_B1LC, v_B1LC = (
            layer(h_BCHW).permute(0, 2, 3, 1).reshape(B, 1, H * W, C) for layer in (self.q, self.k, self.v)
        )
        out_B1LC = F.scaled_dot_product_attention(q_B1LC, k_B1LC, v_B1LC)
        return x_BCHW + self.proj_out(out_B1LC.reshape(B, H, W, C).permute(0, 3, 1, 2))


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # Upstream pads right and bottom only; a symmetric padding=1 shifts the image.
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
        *,
        num_groups: int,
        attention: bool,
        downsample: nn.Module | None = None,
        upsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        pairs = list(zip(channels[:-1], channels[1:], strict=True))
        self.block = nn.ModuleList(_ResBlock(*pair, num_groups=num_groups) for pair in pairs)
        self.attn = nn.ModuleList(_Attention(width, num_groups=num_groups) for _, width in pairs if attention)
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
    def __init__(self, channels: int, *, num_groups: int) -> None:
        super().__init__()
        self.block_1 = _ResBlock(channels, channels, num_groups=num_groups)
        self.attn_1 = _Attention(channels, num_groups=num_groups)
        self.block_2 = _ResBlock(channels, channels, num_groups=num_groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))


class Encoder(nn.Module):
    """Pixels [B, in_channels, H, W] to `channels_out` numbers at each place of the grid."""

    def __init__(self, config: Sizes, *, channels_out: int, attn_resolutions: Sequence[int]) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            _Level(
                [widths[i - 1] if i else config.ch] + [width] * config.num_res_blocks,
                num_groups=config.num_groups,
                attention=config.resolution // 2**i in attn_resolutions,
                downsample=_Downsample(width) if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid = _Middle(widths[-1], num_groups=config.num_groups)
        self.norm_out = _group_norm(config.num_groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], channels_out, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv_in(x_BCHW)
        for level in self.down:
            x_BCHW = level(x_BCHW)
        return self.conv_out(F.silu(self.norm_out(self.mid(x_BCHW))))


class Decoder(nn.Module):
    """Latents [B, z_channels, H, W] to pixels."""

    def __init__(self, config: Sizes, *, attn_resolutions: Sequence[int]) -> None:
        super().__init__()
        widths = [config.ch * mult for mult in config.ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], num_groups=config.num_groups)
        self.up = nn.ModuleList(
            _Level(
                [widths[min(i + 1, last)]] + [width] * (config.num_res_blocks + 1),
                num_groups=config.num_groups,
                attention=config.resolution // 2**i in attn_resolutions,
                upsample=_Upsample(width) if i > 0 else None,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = _group_norm(config.num_groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        x_BCHW = self.mid(self.conv_in(z_BCHW))
        for level in reversed(self.up):
            x_BCHW = level(x_BCHW)
        return self.conv_out(F.silu(self.norm_out(x_BCHW)))


def resize(images_B3HW: Tensor, size: int) -> Tensor:
    """Images [B, 3, size, size], antialiased bicubic; those of that size as they are."""
    if images_B3HW.shape[-2:] == (size, size):
        return images_B3HW
    return F.interpolate(images_B3HW.float(), size=(size, size), mode="bicubic", antialias=True)


def to_pixels_in(images_B3HW: Tensor, config: Sizes) -> Tensor:
    """What an encoder reads of images in [0, 1]: resized if the config says so, in [-1, 1]."""
    if config.image_size is not None:
        images_B3HW = resize(images_B3HW, config.resolution).clamp(0.0, 1.0)
    return 2.0 * images_B3HW - 1.0


def to_images(pixels_B3HW: Tensor, config: Sizes) -> Tensor:
    """Images of what a decoder gives, float32, nominally in [0, 1] and not clamped; resized likewise."""
    images_B3HW = (pixels_B3HW.float() + 1.0) / 2.0
    return images_B3HW if config.image_size is None else resize(images_B3HW, config.image_size)
