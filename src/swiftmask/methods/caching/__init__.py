"""Training-free rivals of the learned shortcut: reuse the last features, or extrapolate them."""

from swiftmask.methods.caching.features import ExtrapolatedFeatures, ReuseFeatures

__all__ = ["ExtrapolatedFeatures", "ReuseFeatures"]
