"""Drift and diversity: against scipy's filters, at the ends of their ranges, and what is refused."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from swiftmask.evaluate.drift import diversity, feature_cosine, ssim, token_agreement


def pictures(seed: int, *, height: int = 17, width: int = 23) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def ssim_by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    """Of one colour; scipy's filter reaches 5 pixels, whose margin is cut away."""

    def smooth(plane: np.ndarray) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(plane, 1.5, radius=5)[5:-5, 5:-5]

    mean_x, mean_y = smooth(x), smooth(y)
    variance_x, variance_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + 0.0001) * (2 * covariance + 0.0009)
    below = (mean_x**2 + mean_y**2 + 0.0001) * (variance_x + variance_y + 0.0009)
    return float((above / below).mean())


def test_ssim_is_scipys() -> None:
    first = pictures(1)
    second = (first + 0.2 * pictures(2)).clamp(0, 1)
    planes = [
        [ssim_by_scipy(x, y) for x, y in zip(*pair, strict=True)]
        for pair in zip(first.double().numpy(), second.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(ssim(first, second).numpy(), np.mean(planes, axis=1), rtol=1e-9)


def test_ssim_of_equal_and_of_inverted_pictures() -> None:
    first = pictures(1)
    torch.testing.assert_close(ssim(first, first), torch.ones(2, dtype=torch.float64))
    assert (ssim(first, 1 - first) < 0).all()


def test_token_agreement_is_per_picture() -> None:
    tokens_BL = torch.arange(8).reshape(2, 4)
    other_BL = tokens_BL.clone()
    other_BL[1, :3] = 99
    assert token_agreement(tokens_BL, other_BL).tolist() == [1.0, 0.25]


def test_feature_cosine() -> None:
    features_BD = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    reference_BD = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert feature_cosine(features_BD, reference_BD).tolist() == [1.0, 0.0, -1.0]


def test_diversity_is_the_mean_over_pairs() -> None:
    features_PKD = torch.tensor([[[1.0, 0.0], [5.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]])
    assert diversity(features_PKD).tolist() == pytest.approx([0.0, 2 / 3])


def test_complaints() -> None:
    with pytest.raises(ValueError, match="in pairs"):
        token_agreement(torch.zeros(2, 4).long(), torch.zeros(2, 5).long())
    with pytest.raises(ValueError, match="in pairs, with 2 axes"):
        token_agreement(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="never quite the same"):
        token_agreement(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="at least 11x11"):
        ssim(pictures(1, height=10), pictures(1, height=10))
    with pytest.raises(ValueError, match="in pairs"):
        ssim(pictures(1), pictures(1, width=24))
    with pytest.raises(ValueError, match="at least 2 images of each prompt"):
        diversity(torch.zeros(3, 1, 4))
