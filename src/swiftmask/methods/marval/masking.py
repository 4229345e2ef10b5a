"""How much of a picture the distillation hides: MAR's law (arXiv 2406.11838, section 4.2), or a wider one."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from swiftmask.core.ranges import check_fields
from swiftmask.core.types import Canvas


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskLaw:
    """The share of tokens that is masked: a normal distribution truncated to [lowest, highest].

    The defaults are MAR's (arXiv 2406.11838). A decode also visits lower shares, which a smaller `lowest`
    and a larger `std` cover.
    """

    mean: float = 1.0
    std: float = 0.25
    lowest: float = 0.7
    highest: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.lowest >= self.highest:
            raise ValueError(f"lowest must be below highest, got {self.lowest} and {self.highest}")

    def num_masked(self, num_tokens: int, uniform: float) -> int:
        """Masked tokens, at least one, by inverting the distribution at `uniform` in [0, 1)."""
        normal = NormalDist(self.mean, self.std)
        low, high = normal.cdf(self.lowest), normal.cdf(self.highest)
        rate = normal.inv_cdf(low + uniform * (high - low))
        return min(num_tokens, max(1, math.ceil(num_tokens * rate)))


def mask_tokens(tokens_BLC: Tensor, law: MaskLaw, generator: torch.Generator) -> Canvas:
    """Real tokens with one number of positions masked at random in every image.

    Args:
        generator: on the CPU.
    """
    batch, length = tokens_BLC.shape[:2]
    num_masked = law.num_masked(length, torch.rand((), generator=generator).item())
    order_BL = torch.rand(batch, length, generator=generator).argsort(dim=1)
    masked_BL = torch.zeros(batch, length, dtype=torch.bool).scatter(1, order_BL[:, :num_masked], True)
    masked_BL = masked_BL.to(tokens_BLC.device)
    return Canvas(tokens_BLC.masked_fill(masked_BL[..., None], 0.0), masked_BL, num_masked)
