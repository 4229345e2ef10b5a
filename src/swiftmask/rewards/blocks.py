"""Blocks of the networks that read images: residual convolutions, and ConvNeXt's (Liu et al., 2022)."""

from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two 3x3 convolutions after their norms, beside a skip, [B, D, H, W]; the first may have a stride."""

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width_in)
        self.first = nn.Conv2d(width_in, width, 3, stride, 1)
        self.middle = nn.GroupNorm(8, width)
        self.second = nn.Conv2d(width, width, 3, 1, 1)
        self.skip = nn.Conv2d(width_in, width, stride, stride) if stride > 1 else nn.Identity()

    def forward(self, x_BDHW: Tensor) -> Tensor:
        h_BDHW = self.first(F.relu(self.norm(x_BDHW)))
        return self.skip(x_BDHW) + self.second(F.relu(self.middle(h_BDHW)))


class ConvNeXt(nn.Module):
    """A depthwise 5x5 convolution and an MLP over the channels, beside a skip, [B, D, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, 1, 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 3 * width)
        self.project = nn.Linear(3 * width, width)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        h_BHWD = self.norm(self.depthwise(x_BDHW).permute(0, 2, 3, 1))
        return x_BDHW + self.project(F.gelu(self.expand(h_BHWD))).permute(0, 3, 1, 2)
