"""Distribution metrics of a set of images from its features: FID and kin, each with what makes it readable.

That is N, the spread, the settings, the hash of the extractor, and the same metric between two sets of real
images. Names carry the extractor's name unless it is the canonical Inception (extractors.py).
"""

from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Self

import torch
from torch import Tensor

from swiftmask.evaluate.distances import frechet_distance, inception_score, kernel_distance, neighbourhoods
from swiftmask.evaluate.extractors import Identity
from swiftmask.evaluate.feature_store import FeatureStore, Readings
from swiftmask.evaluate.statistics import FeatureStatistics, Moments

Found = dict[str, tuple[float, float | None]]
"""Value and spread by kind of metric."""

KINDS = ("fd", "is", "kid", "precision", "recall", "density", "coverage")
"""Of metrics, in the order of tables."""

_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSettings:
    """What the metrics are defined with; part of the result.

    Attributes:
        nearest: neighbour that bounds a neighbourhood (precision, recall, density, coverage).
        kid_subsets, kid_subset_size: of the kernel distance; smaller where there are fewer images.
        splits: of the Inception Score.
        seed: of subsets and splits.
    """

    nearest: int = 3
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    splits: int = 10
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number.

    Attributes:
        spread: standard deviation over subsets or splits, where the metric has them.
        floor: the same of `FolderMetrics.floor_pictures` real images against the other real ones; None
            without features of the reference.
    """

    name: str
    value: float
    spread: float | None = None
    floor: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderMetrics:
    """Metrics of one set of images, and what they mean.

    Attributes:
        extractor: its name and the SHA-256 of its weights.
        reference_pictures: None where a file of statistics does not say.
        floor_pictures: real images in the place of the generated ones; 0 if there is no floor.
        left_out: metrics that this reference or extractor cannot give.
    """

    extractor: Identity
    pictures: int
    reference_pictures: int | None
    floor_pictures: int
    settings: MetricSettings
    metrics: tuple[Metric, ...]
    left_out: tuple[str, ...]


def compare_sets(
    generated: FeatureStore, reference: FeatureStore | Moments, settings: MetricSettings
) -> FolderMetrics:
    """All metrics against real images, each beside its floor; against mean and covariance, what they allow:
    the Fréchet distance, and the Inception Score beside it.

    The floor puts real images in the place of the generated ones: as many, at most half of the reference,
    drawn at random and compared with the rest. Most metrics here are biased by the number of images, so it
    is comparable where the reference is much larger than the generated set, and too high where it is not.

    Errors: ValueError for different extractors, or too few images for a metric.
    """
    identity, ours = generated.identity, FeatureSample.of(generated.readings())
    floor: Found = {}
    half = 0
    if isinstance(reference, Moments):
        real = reference
    else:
        if identity.sha256 != reference.identity.sha256:
            raise ValueError(
                f"the images were described by {identity.name}, the reference by {reference.identity.name} "
                "or other weights of it: describe both with one extractor"
            )
        real = FeatureSample.of(reference.readings())
        floor, half = floor_of(real, generated.count, identity, settings)
    found = compared(ours, real, identity, settings)
    metrics = tuple(
        Metric(
            name=identity.metric(kind),
            value=found[kind][0],
            spread=found[kind][1],
            floor=floor[kind][0] if kind in floor else None,
        )
        for kind in KINDS
        if kind in found
    )
    return FolderMetrics(
        extractor=identity,
        pictures=generated.count,
        reference_pictures=reference.count,
        floor_pictures=half,
        settings=settings,
        metrics=metrics,
        left_out=tuple(identity.metric(kind) for kind in KINDS if kind not in found),
    )


def floor_of(
    real: "FeatureSample", num_generated: int, identity: Identity, settings: MetricSettings
) -> tuple[Found, int]:
    """The metrics of real images against other real ones, and how many stood for the generated ones; nothing
    and 0 where there are too few.
    """
    half = min(num_generated, len(real.features_XD) // 2)
    if half < fewest_images(settings):
        return {}, 0
    order_X = torch.randperm(len(real.features_XD), generator=_generator(settings))
    first, second = real.at(order_X[:half]), real.at(order_X[half:])
    return compared(first, second, identity, settings), half


@dataclass(frozen=True)
class FeatureSample:
    """Features of images in memory."""

    features_XD: Tensor
    log_probabilities_XV: Tensor | None

    @classmethod
    def of(cls, readings: Readings) -> Self:
        return cls(readings["features"], readings.get("log_probabilities"))

    def at(self, indices_X: Tensor) -> Self:
        classes = self.log_probabilities_XV
        return type(self)(self.features_XD[indices_X], None if classes is None else classes[indices_X])

    @cached_property
    def moments(self) -> Moments:
        parts = (FeatureStatistics.of(part_BD) for part_BD in self.features_XD.split(_ROWS))
        return reduce(FeatureStatistics.merged, parts).moments()


def compared(
    ours: FeatureSample, real: FeatureSample | Moments, identity: Identity, settings: MetricSettings
) -> Found:
    """All metrics of images against real ones; against mean and covariance alone, what they allow.

    Errors: ValueError for statistics of another extractor, or too few images for a metric.
    """
    if isinstance(real, Moments):
        distance = frechet_distance(replace(ours.moments, extractor=identity.sha256), real)
        return {"fd": (distance, None), **_scored(ours.log_probabilities_XV, settings)}
    fewest = min(len(ours.features_XD), len(real.features_XD))
    if fewest < (needed := fewest_images(settings)):
        raise ValueError(
            f"these metrics need at least {needed} images on either side, got {fewest}: give more, or "
            "choose nearer neighbours and fewer splits"
        )
    scale = 1.0 if identity.canonical else _root_mean_square(real.features_XD)
    kernel = kernel_distance(
        ours.features_XD,
        real.features_XD,
        _generator(settings),
        num_subsets=settings.kid_subsets,
        subset_size=min(settings.kid_subset_size, fewest),
        scale=scale,
    )
    overlap = neighbourhoods(ours.features_XD, real.features_XD, nearest=settings.nearest)
    found: Found = {"fd": (frechet_distance(ours.moments, real.moments), None), "kid": kernel}
    found |= _scored(ours.log_probabilities_XV, settings)
    return found | {kind: (value, None) for kind, value in overlap._asdict().items()}


def _scored(log_probabilities_XV: Tensor | None, settings: MetricSettings) -> Found:
    if log_probabilities_XV is None:
        return {}
    score = inception_score(log_probabilities_XV, _generator(settings), num_splits=settings.splits)
    return {"is": score}


def _root_mean_square(features_XD: Tensor) -> float:
    """Brings features of any network to the size the cubic kernel is made for; raw ones make it explode."""
    norm = torch.linalg.vector_norm(features_XD, dtype=torch.float64).item()
    return norm / features_XD.numel() ** 0.5 or 1.0


def fewest_images(settings: MetricSettings) -> int:
    """What either side needs for neighbours and splits."""
    return max(settings.nearest + 1, settings.splits)


def _generator(settings: MetricSettings) -> torch.Generator:
    return torch.Generator().manual_seed(settings.seed)
