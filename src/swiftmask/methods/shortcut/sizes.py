"""Which shortcut network a base model takes, and its sizes by name."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import cast

import torch
from torch import Tensor

from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.ranges import check_fields
from swiftmask.methods.shortcut.features import AnyShortcut
from swiftmask.methods.shortcut.network import Shortcut, ShortcutConfig
from swiftmask.methods.shortcut.rotary import RotaryModel, RotaryShortcut, RotaryShortcutConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the shortcut; None takes those of `size`."""

    bottleneck_width: int | None = None
    num_blocks: int | None = None
    num_heads: int | None = None
    mlp_width: int | None = None
    time_frequencies: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def _small(width: int) -> ShortcutConfig:
    """Half the base's width, in heads of 16."""
    bottleneck = max(1, width // 2)
    heads = _divisor(bottleneck, bottleneck // 16)
    return ShortcutConfig(width=width, bottleneck_width=bottleneck, num_heads=heads)


def _released(width: int) -> ShortcutConfig:
    """As published for MaskGIT: 384 of 768, in 16 heads."""
    return ShortcutConfig(width=width, bottleneck_width=width // 2, num_heads=16)


def _small_rotary(width: int) -> RotaryShortcutConfig:
    """Half the base's width, in heads of 32; feed-forward layers of 8 / 3 of that."""
    bottleneck = 2 * max(1, width // 4)
    heads = _divisor(bottleneck // 2, bottleneck // 32)
    return RotaryShortcutConfig(
        width=width, bottleneck_width=bottleneck, num_heads=heads, mlp_width=8 * bottleneck // 3
    )


def _released_rotary(width: int) -> RotaryShortcutConfig:
    """As published for Lumina-DiMOO: 2048 of 4096, in 32 heads, feed-forward layers of six times that."""
    return RotaryShortcutConfig(
        width=width, bottleneck_width=width // 2, num_heads=32, mlp_width=6 * (width // 2)
    )


SIZES: dict[str, Callable[[int], ShortcutConfig]] = {"small": _small, "released": _released}
ROTARY_SIZES: dict[str, Callable[[int], RotaryShortcutConfig]] = {
    "small": _small_rotary,
    "released": _released_rotary,
}
"""From the width of a base to a shortcut's sizes."""


def fresh_shortcut(base: MaskedGenerator, size: str, overrides: Sizes) -> AnyShortcut:
    """A shortcut for `base` that starts as a copy of the old features.

    A base with rotary positions of its own (`RotaryModel`) takes the network that reads them.

    Args:
        size: a name in `SIZES`.

    Errors: ValueError for sizes that do not go together.
    """
    config = sizes_for(base, size, overrides)
    if isinstance(config, RotaryShortcutConfig):
        return RotaryShortcut(config).start_as_copy()
    return Shortcut(config).start_as_copy().fit_to_embeddings(_embeddings(base).cpu())


def sizes_for(base: MaskedGenerator, size: str, overrides: Sizes) -> ShortcutConfig | RotaryShortcutConfig:
    """Of the network that `fresh_shortcut` makes."""
    given = {f.name: getattr(overrides, f.name) for f in fields(overrides)}
    chosen = {name: value for name, value in given.items() if value is not None}
    if hasattr(base, "fresh_tokens"):
        theta = cast(RotaryModel, base).rope_theta
        return replace(ROTARY_SIZES[size](base.spec.width), rope_theta=theta, **chosen)
    return replace(SIZES[size](base.spec.width), **chosen)


@torch.no_grad()
def _embeddings(base: MaskedGenerator) -> Tensor:
    """Every code at every position [L, V, D]; of a base of latents, as many tokens of unit variance."""
    spec = base.spec
    positions_L1 = torch.arange(spec.num_tokens, device=base.device)[:, None]
    if spec.codebook_size is None:
        assert spec.channels is not None
        shape = (spec.num_tokens, _NUM_LATENTS, spec.channels)
        latents_LNC = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(base.device)
        return base.embed(latents_LNC, positions_L1.expand(-1, _NUM_LATENTS)).float()
    codes_V = torch.arange(spec.codebook_size, device=base.device)
    codes_LV, positions_LV = torch.broadcast_tensors(codes_V, positions_L1)
    return base.embed(codes_LV, positions_LV).float()


_NUM_LATENTS = 64


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`."""
    return max(d for d in range(1, max(1, most) + 1) if math.gcd(number, d) == d)
