"""Feature functions that need no training: what a user would try before learning a shortcut.

Reuse keeps the last full features. Extrapolation follows TaylorSeer (Liu et al., "From reusing to
forecasting", arXiv 2503.06923): predict the features from how they changed over the last full steps. The
paper's Taylor terms take backward differences for derivatives, which assumes evenly spaced full steps and
misses a quadratic at order 2; here the polynomial through the same full features is evaluated instead,
which is exact for any spacing and equal to theirs at order 1.
Left out: per-layer caching, which would reach inside the backbone.
"""

from dataclasses import dataclass

from torch import Tensor

from swiftmask.core.protocol import Condition, MaskedGenerator
from swiftmask.core.types import Canvas, Features, Record, Step


class ReuseFeatures:
    """Steps that are not full see the last full features unchanged."""

    name, settings = "reuse", ()

    def __init__(self, model: MaskedGenerator) -> None:
        self._model = model

    def __call__(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        if step.full or previous is None:
            return Features(self._model.features(canvas, condition))
        return previous.features


@dataclass(frozen=True, slots=True)
class _Known:
    """Full features, oldest first, and the step each belongs to."""

    indices: tuple[int, ...]
    features_GBTD: tuple[Tensor, ...]


class ExtrapolatedFeatures:
    """Steps that are not full continue the polynomial through the last `order + 1` full features.

    Until that many exist, the order is as high as they allow (one full feature is reuse).

    Args:
        order: 1 (straight line) or 2 (parabola), in the step index. Errors: ValueError for another.
    """

    def __init__(self, model: MaskedGenerator, order: int = 1) -> None:
        if order not in (1, 2):
            raise ValueError(f"extrapolation has order 1 or 2, got {order}: order 0 is ReuseFeatures")
        self.name, self.settings = f"extrapolation-{order}", (order,)
        self._model = model
        self._order = order

    def __call__(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        known = _Known((), ()) if previous is None else previous.features.carry
        assert isinstance(known, _Known), "the previous features come from another feature function"
        if not step.full and previous is not None:
            return Features(_polynomial_at(step.index, known), known)
        features_GBTD = self._model.features(canvas, condition)
        kept = slice(-self._order - 1, None)
        indices = (*known.indices, step.index)[kept]
        return Features(features_GBTD, _Known(indices, (*known.features_GBTD, features_GBTD)[kept]))


def _polynomial_at(index: int, known: _Known) -> Tensor:
    """Lagrange's form: weights are Python numbers, sums are float32 because they cancel."""
    weights = lagrange_weights(index, known.indices)
    newest_GBTD = known.features_GBTD[-1]
    total_GBTD = newest_GBTD.float() * weights[-1]
    for weight, features_GBTD in zip(weights[:-1], known.features_GBTD[:-1], strict=True):
        total_GBTD = total_GBTD.add(features_GBTD, alpha=weight)
    return total_GBTD.to(newest_GBTD.dtype)


def lagrange_weights(at: int, indices: tuple[int, ...]) -> list[float]:
    """How much each known value counts in the polynomial through them, evaluated at `at`; they sum to 1."""
    weights = []
    for own in indices:
        weight = 1.0
        for other in indices:
            if other != own:
                weight *= (at - other) / (own - other)
        weights.append(weight)
    return weights
