"""The two networks that read Scenes from pixels, and what they say before it is decoded.

Both look at the image on a 16x16 map and say for each cell: is an object's centre here, which shape,
colour and size, and where exactly. One description of the whole image (`features_BD`) names the
background. They share nothing else: one is a convolutional residual network, the other joins ConvNeXt
blocks (Liu et al., 2022) with a transformer.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swiftmask.core.ranges import check_fields
from swiftmask.data.scenes import COLOURS, MAX_OBJECTS, PATTERNS, SHAPES, SIZES
from swiftmask.rewards.blocks import ConvNeXt, Residual

GRID = 16
INPUT_SIZE = 64
_MAP_PARTS = (1, len(SHAPES), len(COLOURS), len(SIZES), 2)
_WHOLE_PARTS = (len(PATTERNS), len(COLOURS), 1 + MAX_OBJECTS, len(SHAPES), len(COLOURS))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderConfig:
    """`network` names one of `NETWORKS`; `width` is the channels of its 16x16 map."""

    network: Literal["residual", "hybrid"]
    width: int = 64
    num_features: int = 128

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width % 16:
            raise ValueError(f"width must be a multiple of 16, got {self.width}")


@dataclass(frozen=True, slots=True)
class Reading:
    """Raw outputs.

    Per cell: `heat_BHW` (logit of an object's centre), `shape_BHWK`, `colour_BHWK`, `size_BHWK` (logits over
    K choices), `offset_BHWX` (centre minus cell middle, in cells: x, y). Per image: logits of the pattern,
    of the background colour, of the number of objects (0 = unreadable), of each shape and colour being there.
    """

    heat_BHW: Tensor
    shape_BHWK: Tensor
    colour_BHWK: Tensor
    size_BHWK: Tensor
    offset_BHWX: Tensor
    pattern_BK: Tensor
    background_BK: Tensor
    count_BK: Tensor
    has_shape_BK: Tensor
    has_colour_BK: Tensor


class ReaderNetwork(nn.Module):
    """A trunk (map and whole-picture descriptions) with linear heads."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = NETWORKS[config.network](config.width)
        self.to_features = nn.Linear(4 * config.width, config.num_features)
        self.map_head = nn.Linear(config.width, sum(_MAP_PARTS))
        self.whole_head = nn.Linear(config.num_features, sum(_WHOLE_PARTS))
        with torch.no_grad():
            self.map_head.bias[0] = -4.0  # nearly every cell is empty

    def forward(self, images_B3HW: Tensor) -> tuple[Reading, Tensor]:
        """The reading and `features_BD` of images of `INPUT_SIZE`."""
        map_BDHW, coarse_BDHW = self.trunk((images_B3HW - 0.5) * 4)
        pooled_BD = torch.cat([coarse_BDHW.mean(dim=(2, 3)), coarse_BDHW.amax(dim=(2, 3))], dim=1)
        features_BD = F.gelu(self.to_features(pooled_BD)).float()
        parts = self.map_head(map_BDHW.permute(0, 2, 3, 1)).float().split(_MAP_PARTS, dim=-1)
        whole = self.whole_head(features_BD).float().split(_WHOLE_PARTS, dim=-1)
        return Reading(parts[0][..., 0], *parts[1:], *whole), features_BD


class ResidualTrunk(nn.Module):
    """Convolutions only: 32x32, 16x16, 8x8, and back up to 16x16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width // 2, 5, 2, 2)
        self.fine = nn.Sequential(Residual(width // 2, width, 2), Residual(width, width))
        self.coarse = nn.Sequential(Residual(width, 2 * width, 2), Residual(2 * width, 2 * width))
        self.up = nn.Conv2d(2 * width, width, 1)
        self.join = Residual(width, width)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        fine_BDHW = self.fine(self.stem(images_B3HW.contiguous(memory_format=torch.channels_last)))
        coarse_BDHW = F.relu(self.coarse(fine_BDHW))
        up_BDHW = F.interpolate(self.up(coarse_BDHW), scale_factor=2.0)
        return F.relu(self.join(fine_BDHW + up_BDHW)), coarse_BDHW


class HybridTrunk(nn.Module):
    """ConvNeXt blocks at 16x16; a transformer over 8x8 patches of it; one more block where they meet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 4, 2, 1), nn.GELU(), nn.Conv2d(width // 2, width, 4, 2, 1)
        )
        self.fine = nn.Sequential(ConvNeXt(width), ConvNeXt(width))
        self.patch = nn.Conv2d(width, 2 * width, 2, 2)
        self.position_LD = nn.Parameter(torch.randn((GRID // 2) ** 2, 2 * width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            2 * width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.coarse = nn.TransformerEncoder(
            layer, 2, norm=nn.LayerNorm(2 * width), enable_nested_tensor=False
        )
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join = ConvNeXt(width)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        fine_BDHW = self.fine(self.stem(images_B3HW))
        patches_BDHW = self.patch(fine_BDHW)
        coarse_BLD = self.coarse(patches_BDHW.flatten(2).transpose(1, 2) + self.position_LD)
        coarse_BDHW = coarse_BLD.transpose(1, 2).unflatten(2, patches_BDHW.shape[2:])
        return self.join(fine_BDHW + self.up(coarse_BDHW)), coarse_BDHW


NETWORKS: dict[str, type[ResidualTrunk] | type[HybridTrunk]] = {
    "residual": ResidualTrunk,
    "hybrid": HybridTrunk,
}
