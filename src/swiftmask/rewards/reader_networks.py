"""Networks that read columns off an image, such as a concept and a style: one softmax a column.

Two architectures, so that a judge can be of another one than the reward that something is trained against:
residual convolutions alone, and ConvNeXt blocks below a transformer.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swiftmask.core.ranges import check_fields
from swiftmask.rewards.blocks import ConvNeXt, Residual

_SCALE = 16
"""Pixels along one side of what the deepest maps of the convolutions describe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderSettings:
    """`config.json` of a reader.

    Attributes:
        name: under which tables show it.
        width: channels of the maps at a quarter of the resolution, a multiple of 16.
        num_features: of the description that all columns are read from.
        resolution: side in pixels that images are resized to, a multiple of 16.
        columns: values of each column.

    Errors: ValueError for sizes that do not go together, a column without two values, or a value twice.
    """

    name: str
    network: Literal["conv", "transformer"]
    width: int
    num_features: int
    resolution: int
    columns: dict[str, list[str]]

    def __post_init__(self) -> None:
        check_fields(self)
        for key in ("width", "resolution"):
            if (value := getattr(self, key)) % _SCALE:
                raise ValueError(f"{key} must be a multiple of {_SCALE}, got {value}")
        if not self.columns:
            raise ValueError("columns must name at least one column")
        for column, values in self.columns.items():
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise ValueError(f"the values of column {column!r} must be a list of text")
            if len(values) < 2 or len({*values}) < len(values):
                raise ValueError(f"column {column!r} must have two different values or more")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a network says of images.

    Attributes:
        features_BD: float32.
        logits: float32 [B, V] of each column, in the order of the settings.
    """

    features_BD: Tensor
    logits: tuple[Tensor, ...]


class ReaderNetwork(nn.Module):
    """A trunk, a description of the whole image, and a linear head over the values of all columns."""

    def __init__(self, settings: ReaderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.trunk = TRUNKS[settings.network](settings.width, settings.resolution)
        self.to_features = nn.Linear(2 * self.trunk.channels, settings.num_features)
        self.norm = nn.LayerNorm(settings.num_features)
        self._sizes = [len(values) for values in settings.columns.values()]
        self.head = nn.Linear(settings.num_features, sum(self._sizes))

    def forward(self, images_B3HW: Tensor) -> Reading:
        """Read images [B, 3, H, W] in [0, 1] at the settings' resolution."""
        map_BDHW = self.trunk((images_B3HW - 0.5) * 4)
        pooled_BD = torch.cat([map_BDHW.mean(dim=(2, 3)), map_BDHW.amax(dim=(2, 3))], dim=1)
        features_BD = F.gelu(self.norm(self.to_features(pooled_BD)))
        return Reading(features_BD.float(), self.head(features_BD).float().split(self._sizes, dim=-1))


class ConvTrunk(nn.Module):
    """Residual convolutions: half, quarter, eighth and sixteenth of the resolution."""

    def __init__(self, width: int, resolution: int) -> None:
        super().__init__()
        self.channels = 4 * width
        self.stem = nn.Conv2d(3, width // 2, 5, 2, 2)
        self.blocks = nn.Sequential(
            Residual(width // 2, width, 2),
            Residual(width, width),
            Residual(width, 2 * width, 2),
            Residual(2 * width, 2 * width),
            Residual(2 * width, 4 * width, 2),
            Residual(4 * width, 4 * width),
        )

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return self.blocks(self.stem(images_B3HW.contiguous(memory_format=torch.channels_last)))


class TransformerTrunk(nn.Module):
    """ConvNeXt blocks at a quarter of the resolution, and a transformer over patches of an eighth."""

    def __init__(self, width: int, resolution: int) -> None:
        super().__init__()
        self.channels = 2 * width
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 4, 2, 1), nn.GELU(), nn.Conv2d(width // 2, width, 4, 2, 1)
        )
        self.fine = nn.Sequential(ConvNeXt(width), ConvNeXt(width))
        self.patch = nn.Conv2d(width, self.channels, 2, 2)
        self.position_LD = nn.Parameter(torch.randn((resolution // 8) ** 2, self.channels) * 0.02)
        layer = nn.TransformerEncoderLayer(
            self.channels,
            4,
            4 * self.channels,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, 4, norm=nn.LayerNorm(self.channels), enable_nested_tensor=False
        )

    def forward(self, images_B3HW: Tensor) -> Tensor:
        patches_BDHW = self.patch(self.fine(self.stem(images_B3HW)))
        found_BLD = self.layers(patches_BDHW.flatten(2).transpose(1, 2) + self.position_LD)
        return found_BLD.transpose(1, 2).unflatten(2, patches_BDHW.shape[2:])


TRUNKS: dict[str, type[ConvTrunk] | type[TransformerTrunk]] = {
    "conv": ConvTrunk,
    "transformer": TransformerTrunk,
}

WIDTHS = {
    "conv": {"tiny": 16, "small": 48, "base": 64},
    "transformer": {"tiny": 16, "small": 64, "base": 96},
}
"""Of each size, by network: those called base have about the same number of operations."""
