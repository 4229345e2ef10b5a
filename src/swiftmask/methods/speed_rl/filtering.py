"""Which images of a round teach nothing and are left out.

Speed-RL (arXiv 2512.01094) filters low-quality samples by a percentile of the reward's standard deviation;
which way, the published part does not say. A group whose rewards hardly differ carries no ranking, and
scaling by its standard deviation turns rounding into advantages, so the groups with the lowest are dropped.
Statistics are those of all processes together, so that all agree; the window is
part of the checkpoint.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swiftmask.core.ranges import check_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterConfig:
    """Settings of the filter.

    Attributes:
        percentile: how many of a hundred are left out; 0 keeps all but groups of equal rewards.
        window: groups whose statistics say where the percentile lies.
        active_after: groups that must have been seen before anything is left out.
    """

    percentile: float = 25.0
    window: int = 256
    active_after: int = 64

    def __post_init__(self) -> None:
        check_fields(self)
        if self.active_after > self.window:
            raise ValueError(
                "filter.active_after must be at most filter.window, "
                f"got {self.active_after} and {self.window}"
            )


@dataclass(frozen=True, slots=True)
class Kept:
    """What the filter leaves: bool `kept_PK`, and the scalar `threshold` (minus infinity while inactive)."""

    kept_PK: Tensor
    threshold: Tensor


class Filter(nn.Module):
    """Remembers the statistics of the last groups and drops what falls below their percentile.

    Args:
        num_generations: images of a group.
    """

    values_XK: Tensor
    num_seen: Tensor

    def __init__(self, config: FilterConfig, num_generations: int) -> None:
        super().__init__()
        self._config = config
        self.register_buffer("values_XK", torch.zeros(config.window, num_generations))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, quality_PK: Tensor) -> Kept:
        """Take in a round and say what of it to learn from.

        Args:
            quality_PK: quality rewards of all groups of the round, without the speed reward.
        """
        values_PK = quality_PK.std(dim=1, keepdim=True).expand_as(quality_PK)
        self._remember(values_PK)
        threshold = self._threshold()
        has_ranking_P1 = (quality_PK != quality_PK[:, :1]).any(dim=1, keepdim=True)
        return Kept((values_PK >= threshold) & has_ranking_P1, threshold)

    def _remember(self, values_PK: Tensor) -> None:
        """The newest groups, last."""
        window_XK = torch.cat([self.values_XK, values_PK.to(self.values_XK)])
        self.values_XK.copy_(window_XK[-self._config.window :])
        self.num_seen += len(values_PK)

    def _threshold(self) -> Tensor:
        num_known = min(int(self.num_seen), self._config.window)
        if num_known < self._config.active_after or self._config.percentile == 0:
            return self.values_XK.new_tensor(-torch.inf)
        return torch.quantile(self.values_XK[-num_known:].flatten(), self._config.percentile / 100)
