"""The Frechet distance: against scipy's matrix root, and where a general root fails."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from swiftmask.evaluate.frechet import frechet_distance, moments


def _features(count: int, width: int, *, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mix + shift


def _with_scipy(first: Tensor, second: Tensor) -> float:
    a, b = first.double().numpy(), second.double().numpy()
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(s1 @ s2))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * root))


@pytest.mark.parametrize("width", [1, 3, 24])
def test_equals_scipy(width: int) -> None:
    first, second = _features(200, width, seed=1), _features(150, width, seed=2, shift=0.5)
    got = frechet_distance(moments(first), moments(second))
    expected = _with_scipy(first, second) if width > 1 else None
    if expected is None:
        deviations = first.double().std() - second.double().std()
        expected = ((first.double().mean() - second.double().mean()) ** 2 + deviations**2).item()
    assert got == pytest.approx(expected, rel=1e-6)


def test_same_features_are_at_distance_zero() -> None:
    features = _features(300, 16, seed=3)
    assert frechet_distance(moments(features), moments(features)) == pytest.approx(0, abs=1e-6)


def test_a_shift_adds_its_square() -> None:
    features = _features(300, 16, seed=4)
    assert frechet_distance(moments(features), moments(features + 2)) == pytest.approx(16 * 4, rel=1e-5)


def test_fewer_pictures_than_features() -> None:
    """Rank-deficient covariances: the value in the span of the data is the value."""
    small = _features(10, 4, seed=5), _features(12, 4, seed=6)
    basis = torch.linalg.qr(_features(64, 4, seed=7).double()).Q
    padded = [(features.double() @ basis.T) for features in small]
    expected = frechet_distance(moments(small[0]), moments(small[1]))
    assert frechet_distance(moments(padded[0]), moments(padded[1])) == pytest.approx(expected, rel=1e-5)


def test_constant_features() -> None:
    constant = torch.ones(20, 8)
    assert frechet_distance(moments(constant), moments(constant + 3)) == pytest.approx(72)
    spread = _features(50, 8, seed=8)
    own = moments(spread)
    expected = (own.mean_D - 1).square().sum() + own.covariance_DD.trace()
    assert frechet_distance(own, moments(constant)) == pytest.approx(expected.item())


def test_complaints() -> None:
    with pytest.raises(ValueError, match="at least 2 rows"):
        moments(torch.ones(1, 4))
    with pytest.raises(ValueError, match="finite"):
        moments(torch.tensor([[1.0], [float("nan")]]))
    with pytest.raises(ValueError, match="width"):
        frechet_distance(moments(torch.rand(4, 2)), moments(torch.rand(4, 3)))
