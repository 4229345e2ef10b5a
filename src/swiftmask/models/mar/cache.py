"""What was computed from a module's weights, forgotten as soon as one of them changes.

MAR's sampler repeats two things at every decode that depend on weights alone: the modulation matrices joined
into one, and the features of a canvas without tokens. A change in place shows in a tensor's version, another
tensor in its address; `module.to` shows in neither for certain (freed memory is used again), so modules that
keep such a cache clear it in their `_apply`.
"""

from collections.abc import Hashable

import torch
from torch import Tensor, nn

Signature = tuple[tuple[int, int, torch.dtype, torch.device], ...]


class WeightsCache:
    """Tensors by key, for one module. A copy of it starts empty.

    Args:
        limit: most tensors kept; the oldest go first.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._signature: Signature = ()
        self._kept: dict[Hashable, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> "WeightsCache":
        return WeightsCache(self._limit)

    def __len__(self) -> int:
        return len(self._kept)

    def kept(self, module: nn.Module) -> dict[Hashable, Tensor]:
        """What is still valid for the weights `module` has now; a copy."""
        signature = tuple(
            # Tensors made in inference mode have no version; they cannot be changed outside of it either.
            (p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype, p.device)
            for p in module.parameters()
        )
        if signature != self._signature:
            self.clear()
            self._signature = signature
        return dict(self._kept)

    def keep(self, entries: dict[Hashable, Tensor]) -> None:
        """Add tensors computed from the weights `kept` was last asked about."""
        self._kept |= entries
        for key in list(self._kept)[: max(0, len(self._kept) - self._limit)]:
            del self._kept[key]

    def clear(self) -> None:
        self._kept = {}
        self._signature = ()
