"""Training-free baselines of the learned shortcut: reuse the last features, extrapolate, or recompute few."""

from swiftmask.methods.caching.features import ExtrapolatedFeatures, ReuseFeatures
from swiftmask.methods.caching.ml_cache import (
    MLCacheFeatures,
    lowest_peaks,
    ml_cache_full_steps,
    refreshed_first,
)

__all__ = [
    "ExtrapolatedFeatures",
    "MLCacheFeatures",
    "ReuseFeatures",
    "lowest_peaks",
    "ml_cache_full_steps",
    "refreshed_first",
]
