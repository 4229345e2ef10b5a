"""ML-Cache (Lumina-DiMOO, arXiv 2510.06308, section 3.3.2): recompute only where the model is least sure.

A step that is not full sends a small share of the sequence through the backbone, the rows whose largest logit
is lowest; they attend to the cached keys and values of all others, and the others keep their old features.
Each guidance branch picks its own rows. Upstream caches full logits; the head being linear, features do.

Upstream's rule has a flaw, kept as the default: tokens just decided had high logits, so they are rarely
recomputed and the rest goes on seeing a mask in their place until the next full step. `refreshed_first` puts
them first, at the same cost.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any, Protocol

import torch
from torch import Tensor

from swiftmask.core.protocol import Condition
from swiftmask.core.types import Canvas, Features, Record, Step


class CachingModel(Protocol):
    """What ML-Cache needs of a base model. Conditions and caches are of the model's own making; a cache is a
    value, which no call changes. X = G * B sequences of T columns.
    """

    def features_and_cache(self, canvas: Canvas, condition: Any) -> tuple[Tensor, Any]:
        """Features [G, B, T, D] and the cache that belongs to them."""
        ...

    def recompute(self, canvas: Canvas, condition: Any, columns_XK: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Features [X, K, D] of some columns, and the cache with theirs; a column may be given twice."""
        ...

    def peak_logits(self, features_GBTD: Tensor) -> Tensor:
        """The largest logit at every column, unguided: [G, B, T]."""
        ...

    def sequence_lengths(self, condition: Any) -> tuple[int, ...]:
        """Columns of each sequence that are not padding, which comes first."""
        ...

    def padding(self, condition: Any) -> Tensor:
        """Columns of each sequence that are padding, on the device: int64 [X]."""
        ...

    def columns(self, positions_BN: Tensor, num_columns: int) -> Tensor:
        """Where canvas positions stand in sequences `num_columns` long."""
        ...


@dataclass(frozen=True, slots=True)
class Urgency:
    """What to recompute first.

    Attributes:
        order_XT: the columns with the lowest values are recomputed.
        at_least: how many of them in any case.
    """

    order_XT: Tensor
    at_least: int


Rule = Callable[[Tensor, Tensor], Urgency]
"""`rule(peaks_XT, decided_XN)`: from the largest logits of the step before (infinite at padding) and the
columns decided there.
"""


def lowest_peaks(peaks_XT: Tensor, decided_XN: Tensor) -> Urgency:
    """Upstream's rule."""
    return Urgency(peaks_XT, 0)


def refreshed_first(peaks_XT: Tensor, decided_XN: Tensor) -> Urgency:
    """Tokens just decided, all of them, then the lowest peaks as far as the share allows."""
    return Urgency(peaks_XT.scatter(1, decided_XN, float("-inf")), decided_XN.shape[1])


@dataclass(frozen=True, slots=True)
class _Carry:
    """What the next step needs: the model's cache, and what stays the same over a decode.

    Attributes:
        is_padding_XT: columns that are padding.
        counts_X: columns of each sequence to recompute, int64.
    """

    cache: object
    is_padding_XT: Tensor
    counts_X: Tensor


def _name(rule: Rule) -> str:
    if not isinstance(rule, FunctionType) or rule.__closure__ or rule.__name__ == "<lambda>":
        raise ValueError(
            "measurements are kept under the name of ML-Cache's rule: expected a plain function, got "
            f"{rule}: write it with def, without variables from outside"
        )
    return f"{rule.__module__}.{rule.__qualname__}"


class MLCacheFeatures:
    """The feature function of a base model that can recompute single columns.

    Which steps are full is the schedule's business: `ml_cache_full_steps` places them as upstream does.

    Args:
        cache_ratio: share of the sequence that is not recomputed.
        rule: `lowest_peaks`, or `refreshed_first`.

    Errors: ValueError for a ratio outside [0, 1) or a model without a cache.
    """

    def __init__(self, model: CachingModel, *, cache_ratio: float = 0.9, rule: Rule = lowest_peaks) -> None:
        if not 0 <= cache_ratio < 1:
            raise ValueError(f"cache_ratio must be at least 0 and below 1, got {cache_ratio}")
        if not hasattr(model, "features_and_cache"):
            raise ValueError(
                f"{type(model).__name__} cannot recompute single columns, which ml-cache needs: "
                "use lumina_dimoo, or another caching"
            )
        self.name = "ml-cache"
        self._model = model
        self._cache_ratio = cache_ratio
        self._rule = rule

    @property
    def settings(self) -> tuple[float, str]:
        """The ratio, and the rule's name. Errors: ValueError for a rule that its name does not tell apart."""
        return self._cache_ratio, _name(self._rule)

    def __call__(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        carry = None if previous is None else previous.features.carry
        assert carry is None or isinstance(carry, _Carry), "the features come from another feature function"
        if step.full or previous is None or carry is None:
            features_GBTD, cache = self._model.features_and_cache(canvas, condition)
            if carry is None:
                carry = self._first_carry(condition, features_GBTD.shape[2], cache)
            return Features(features_GBTD, replace(carry, cache=cache))
        old_GBTD = previous.features.features_GBTD
        columns_XK = self._columns(condition, previous, carry)
        fresh_XKD, cache = self._model.recompute(canvas, condition, columns_XK, carry.cache)
        index_XKD = columns_XK[..., None].expand_as(fresh_XKD)
        merged_XTD = old_GBTD.flatten(0, 1).scatter(1, index_XKD, fresh_XKD)
        return Features(merged_XTD.unflatten(0, old_GBTD.shape[:2]), replace(carry, cache=cache))

    def _first_carry(self, condition: Condition, num_columns: int, cache: object) -> _Carry:
        padding_X = self._model.padding(condition)
        return _Carry(
            cache,
            torch.arange(num_columns, device=padding_X.device) < padding_X[:, None],
            _num_recomputed(num_columns - padding_X, self._cache_ratio),
        )

    def _columns(self, condition: Condition, previous: Record, carry: _Carry) -> Tensor:
        """Columns to recompute [X, K], the most urgent first.

        Where lengths differ, so do the counts; but a step has one shape, so a sequence that needs fewer than
        K repeats its first. The host knows K; what differs between sequences stays on the device.
        """
        features_GBTD = previous.features.features_GBTD
        peaks_XT = self._model.peak_logits(features_GBTD).flatten(0, 1)
        decided_BN = self._model.columns(previous.decision.positions_BN, features_GBTD.shape[2])
        urgency = self._rule(
            peaks_XT.masked_fill_(carry.is_padding_XT, float("inf")),
            decided_BN.repeat(condition.num_branches, 1),
        )
        longest = max(self._model.sequence_lengths(condition))
        most = max(num_recomputed(longest, self._cache_ratio), urgency.at_least)
        columns_XK = urgency.order_XT.topk(most, dim=1, largest=False).indices
        counts_X = carry.counts_X.clamp(min=urgency.at_least) if urgency.at_least else carry.counts_X
        spare_XK = torch.arange(most, device=counts_X.device) >= counts_X[:, None]
        return torch.where(spare_XK, columns_XK[:, :1], columns_XK)


def num_recomputed(length: int, cache_ratio: float) -> int:
    """How many of `length` columns lie at or below the quantile 1 - cache_ratio of distinct peaks.

    In float32, as upstream asks for the quantile.
    """
    return int(_num_recomputed(torch.tensor(length), cache_ratio))


def _num_recomputed(length_X: Tensor, cache_ratio: float) -> Tensor:
    return ((length_X - 1).float() * (1 - cache_ratio)).floor().long() + 1


def ml_cache_full_steps(num_steps: int, *, warmup_ratio: float = 0.3, refresh_interval: int = 5) -> list[int]:
    """Upstream's placement: all steps of the warm-up and the one after, then every so many.

    Errors: ValueError for an interval below 1 or a ratio outside [0, 1].
    """
    if refresh_interval < 1 or not 0 <= warmup_ratio <= 1:
        raise ValueError(
            "refresh_interval must be at least 1 and warmup_ratio in [0, 1], got "
            f"{refresh_interval} and {warmup_ratio}"
        )
    warm = int(num_steps * warmup_ratio)
    return [i for i in range(num_steps) if i <= warm or (i - warm) % refresh_interval == 0]
