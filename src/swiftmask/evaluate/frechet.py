"""Frechet distance between two sets of pictures, each described by features (Heusel et al., 1706.08500).

`|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` in float64. With the judge's features on Scenes it is called
`fd_scenes`, never FID, which is the name of one Inception network's features. It is biased upwards for few
pictures, so it means something only beside N and the distance of two sets of real pictures at the same N.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean [D] and covariance [D, D] of features, float64, and how many pictures they come from."""

    mean_D: Tensor
    covariance_DD: Tensor
    count: int


def moments(features_XD: Tensor) -> Moments:
    """Moments of one feature row per picture.

    Errors: ValueError for fewer than two rows or features that are not finite.
    """
    if features_XD.ndim != 2 or features_XD.shape[0] < 2:
        raise ValueError(
            f"the Frechet distance needs at least 2 rows of features, got {tuple(features_XD.shape)}"
        )
    features_XD = features_XD.detach().to("cpu", torch.float64)
    if not features_XD.isfinite().all():
        raise ValueError(
            "the Frechet distance needs finite features, got NaN or infinity: check the pictures"
        )
    mean_D = features_XD.mean(dim=0)
    centred_XD = features_XD - mean_D
    return Moments(mean_D, centred_XD.mT @ centred_XD / (len(features_XD) - 1), len(features_XD))


def frechet_distance(first: Moments, second: Moments) -> float:
    """The distance, never below 0.

    `tr (S1 S2)^(1/2)` is the sum of the singular values of `S1^(1/2) S2^(1/2)`: symmetric roots exist for
    singular covariances too (fewer pictures than features, constant features), where a general matrix root
    goes astray.
    """
    if first.mean_D.shape != second.mean_D.shape:
        raise ValueError(
            f"features differ in width: {first.mean_D.shape[0]} against {second.mean_D.shape[0]}"
        )
    roots_DD = _root(first.covariance_DD) @ _root(second.covariance_DD)
    shift = (first.mean_D - second.mean_D).square().sum()
    spread = first.covariance_DD.trace() + second.covariance_DD.trace()
    return max(0.0, (shift + spread - 2 * torch.linalg.svdvals(roots_DD).sum()).item())


def _root(covariance_DD: Tensor) -> Tensor:
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    return (vectors_DD * values_D.clamp(min=0).sqrt()) @ vectors_DD.mT
