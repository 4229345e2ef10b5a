"""Distances against their textbook definitions in numpy and scipy, and where shortcuts of them go wrong."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import torch
from torch import Tensor

from swiftmask.evaluate import distances
from swiftmask.evaluate.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    neighbourhoods,
    squared_mmd,
    squared_radii,
)
from swiftmask.evaluate.statistics import FeatureStatistics, Moments


def features(count: int, width: int, *, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mix + shift


def moments(features_XD: Tensor) -> Moments:
    return FeatureStatistics.of(features_XD).moments()


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def frechet_by_scipy(first: Tensor, second: Tensor) -> float:
    """The general matrix root of the product, which is not symmetric."""
    a, b = first.double().numpy(), second.double().numpy()
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    product = s1 @ s2
    assert not np.allclose(product, product.T)
    root = np.real(scipy.linalg.sqrtm(product))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root))


@pytest.mark.parametrize("width", [2, 5, 24])
def test_frechet_is_scipys(width: int) -> None:
    first, second = features(200, width, seed=1), features(150, width, seed=2, shift=0.5)
    got = frechet_distance(moments(first), moments(second))
    assert got == pytest.approx(frechet_by_scipy(first, second), rel=1e-9)


def test_frechet_of_fewer_images_than_features() -> None:
    """Features in a subspace have the distance of their coordinates there; both covariances are singular."""
    first, second = features(6, 4, seed=5).double(), features(7, 4, seed=6).double()
    basis_DR = torch.linalg.qr(features(50, 4, seed=7).double()).Q
    got = frechet_distance(moments(first @ basis_DR.T), moments(second @ basis_DR.T))
    assert got == pytest.approx(frechet_by_scipy(first, second), rel=1e-6)


def test_frechet_of_one_image_set_in_orthogonal_subspaces() -> None:
    """N < D with a product of exactly zero: nothing to subtract."""
    first, second = torch.zeros(5, 8), torch.zeros(5, 8)
    first[:, :3], second[:, 4:7] = features(5, 3, seed=1), features(5, 3, seed=2)
    a, b = moments(first), moments(second)
    expected = (a.mean_D - b.mean_D).square().sum() + a.covariance_DD.trace() + b.covariance_DD.trace()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-7)


def test_frechet_of_constant_features() -> None:
    constant, spread = torch.ones(20, 8), features(50, 8, seed=8)
    assert frechet_distance(moments(constant), moments(constant + 3)) == pytest.approx(72)
    own = moments(spread)
    expected = (own.mean_D - 1).square().sum() + own.covariance_DD.trace()
    assert frechet_distance(own, moments(constant)) == pytest.approx(expected.item())
    assert frechet_distance(own, own) == pytest.approx(0, abs=1e-6)


def test_frechet_refuses_different_extractors() -> None:
    statistics = FeatureStatistics.of(features(5, 2, seed=1))
    with pytest.raises(ValueError, match="different weights .*abc and def"):
        frechet_distance(statistics.moments("abc"), statistics.moments("def"))
    assert frechet_distance(statistics.moments("abc"), statistics.moments()) < 1e-9
    with pytest.raises(ValueError, match="width: 2 against 3"):
        frechet_distance(statistics.moments(), moments(features(5, 3, seed=1)))


def mmd_by_definition(first: Tensor, second: Tensor) -> float:
    """Sums over pairs, one by one."""
    x, y = first.double().tolist(), second.double().tolist()

    def kernel(a: list[float], b: list[float]) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def within(rows: list[list[float]]) -> float:
        pairs = [kernel(rows[i], rows[j]) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(a, b) for a in x for b in y]
    return within(x) + within(y) - 2 * sum(across) / len(across)


def test_mmd_is_its_definition() -> None:
    first, second = features(7, 3, seed=1), features(5, 3, seed=2, shift=0.3)
    assert squared_mmd(first, second) == pytest.approx(mmd_by_definition(first, second), rel=1e-10)


def test_kernel_distance_of_whole_sets_and_of_subsets() -> None:
    first, second = features(40, 4, seed=3), features(40, 4, seed=3, shift=1.0)
    whole = kernel_distance(first, second, draws(), num_subsets=3, subset_size=40)
    assert whole.value == pytest.approx(squared_mmd(first, second), rel=1e-10)
    assert whole.spread == pytest.approx(0, abs=1e-10 * whole.value)
    parts = kernel_distance(first, second, draws(), num_subsets=200, subset_size=10)
    assert parts.spread > 0
    assert abs(parts.value - whole.value) < 5 * parts.spread / math.sqrt(200)


def test_kernel_distance_is_unbiased() -> None:
    """Two halves of one population: around zero, on either side of it."""
    values = [squared_mmd(*torch.randn(2, 20, 4, generator=draws().manual_seed(s))) for s in range(200)]
    mean, deviation = float(np.mean(values)), float(np.std(values))
    assert abs(mean) < 4 * deviation / math.sqrt(200)
    assert min(values) < 0 < max(values)


def test_inception_score_is_its_definition() -> None:
    logits_XV = 3 * torch.randn(23, 6, generator=draws())
    p = torch.softmax(logits_XV.double(), dim=1).numpy()
    divergence = scipy.special.rel_entr(p, p.mean(0)).sum(axis=1)
    got = inception_score(logits_XV.log_softmax(dim=1), draws(), num_splits=1)
    assert got.value == pytest.approx(math.exp(divergence.mean()), rel=1e-6)
    assert got.spread == 0
    parts = inception_score(logits_XV.log_softmax(dim=1), draws(), num_splits=5)
    assert parts.spread > 0 and parts.value < got.value


def test_inception_score_of_certain_and_of_undecided_classifiers() -> None:
    certain_XV = torch.eye(4).repeat(3, 1).log()
    assert inception_score(certain_XV, draws(), num_splits=1).value == pytest.approx(4)
    assert inception_score(torch.zeros(12, 4) - math.log(4), draws(), num_splits=3).value == pytest.approx(1)


def neighbourhoods_by_definition(generated: Tensor, real: Tensor, k: int) -> tuple[float, ...]:
    within = scipy.spatial.distance.cdist
    x, y = generated.double().numpy(), real.double().numpy()
    radius_x, radius_y = (np.sort(within(rows, rows), axis=1)[:, k] for rows in (x, y))
    between_YX = within(y, x)
    inside_YX = between_YX <= radius_y[:, None]
    return (
        inside_YX.any(axis=0).mean(),
        (between_YX <= radius_x).any(axis=1).mean(),
        inside_YX.sum() / (k * len(x)),
        inside_YX.any(axis=1).mean(),
    )


@pytest.mark.parametrize("nearest", [1, 3])
@pytest.mark.parametrize("block", [1, 100, 1 << 24])
def test_neighbourhoods_are_their_definition(
    monkeypatch: pytest.MonkeyPatch, nearest: int, block: int
) -> None:
    """In blocks of one row, of a few, and in one block."""
    monkeypatch.setattr(distances, "_BLOCK_ENTRIES", block)
    generated, real = features(31, 5, seed=1, shift=1000.5), features(37, 5, seed=2, shift=1000.0)
    got = neighbourhoods(generated, real, nearest=nearest)
    assert tuple(got) == pytest.approx(neighbourhoods_by_definition(generated, real, nearest))
    assert 0 < got.precision < 1 and 0 < got.recall < 1


def test_neighbourhoods_never_hold_all_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is that of a block: no tensor of distances exceeds it."""
    monkeypatch.setattr(distances, "_BLOCK_ENTRIES", 200)
    sizes: list[int] = []

    def watched(of: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def squared_distances(first: Tensor, second: Tensor) -> Tensor:
            found = of(first, second)
            sizes.append(found.numel())
            return found

        return squared_distances

    monkeypatch.setattr(distances, "squared_distances", watched(distances.squared_distances))
    neighbourhoods(features(60, 3, seed=1), features(50, 3, seed=2), nearest=2)
    assert max(sizes) <= 200
    assert sum(sizes) == 60 * 60 + 50 * 50 + 60 * 50


def test_neighbourhoods_tell_lost_modes_from_bad_images() -> None:
    real = torch.cat([features(40, 3, seed=1), features(40, 3, seed=2, shift=50)])
    one_mode = neighbourhoods(features(40, 3, seed=1) + 0.01, real, nearest=3)
    assert one_mode.precision > 0.9 and one_mode.recall < 0.6 and one_mode.coverage <= 0.5
    far = neighbourhoods(features(40, 3, seed=1, shift=-200), real, nearest=3)
    assert tuple(far) == (0, 0, 0, 0)


def test_equal_and_constant_sets() -> None:
    """Distances of zero are zero, not what rounding leaves: equal rows lie in each other's balls."""
    rows = features(20, 64, seed=4, shift=30)
    same = neighbourhoods(rows, rows, nearest=2)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    constant = torch.full((6, 64), 0.1) + torch.arange(64) / 7
    assert tuple(neighbourhoods(constant, constant, nearest=2)) == (1, 1, 3, 1)
    assert torch.equal(squared_radii(constant, 2), torch.zeros(6, dtype=torch.float64))


def test_complaints() -> None:
    rows = features(5, 2, seed=1)
    with pytest.raises(ValueError, match="2 to 5 images, got 100 of 6"):
        kernel_distance(rows, rows, draws(), subset_size=6)
    with pytest.raises(ValueError, match="1 to 5 splits of 5 images, got 10"):
        inception_score(rows, draws())
    with pytest.raises(ValueError, match="neighbour 5 of an image needs at least 6 images, got 5"):
        neighbourhoods(rows, rows, nearest=5)
    with pytest.raises(ValueError, match="width"):
        neighbourhoods(rows, torch.zeros(5, 3), nearest=1)
    with pytest.raises(ValueError, match="width"):
        kernel_distance(rows, torch.zeros(5, 3), draws(), subset_size=2)
