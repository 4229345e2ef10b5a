"""Distances between two sets of images, each described by features, and the score of one set by its
classes.

Frechet distance (Heusel et al., arXiv 1706.08500, eq. 6), kernel distance (Binkowski et al., arXiv
1801.01401, section 3), Inception Score (Salimans et al., arXiv 1606.03498), improved precision and recall
(Kynkaanniemi et al., arXiv 1904.06991, eq. 1 and 2), density and coverage (Naeem et al., arXiv 2002.09797,
section 3). All in float64. None bears a network's name here: what it is called depends on the extractor
(extractors.py).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from swiftmask.evaluate.statistics import Moments, require_same_width

_BLOCK_ENTRIES = 1 << 22
"""Distances held at a time (32 MB), however many images there are."""

_TOGETHER = 1024
"""Rows held in float64 at a time."""

_RESOLUTION = 1e-12
"""Squared distances below this share of the rows' squared lengths are rounding, of equal float32 rows."""

_LOWEST_LOG = -700.0
"""exp of it is above zero in float64; below, 0 log 0 would be NaN."""


class Estimate(NamedTuple):
    """A mean over subsets and its (population) standard deviation, as the literature reports them."""

    value: float
    spread: float


class Neighbourhoods(NamedTuple):
    """How two sets overlap, each a share in [0, 1] except density, which exceeds 1 in crowded places.

    Attributes:
        precision: generated images inside the real manifold.
        recall: real images inside the generated manifold.
        density: real neighbourhoods around a generated image, over how many there are around a real one.
        coverage: real neighbourhoods with a generated image inside.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def frechet_distance(first: Moments, second: Moments) -> float:
    """`|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`, never below 0.

    `S1 S2` is not symmetric, and a general matrix root of it goes astray where a covariance is singular
    (fewer images than features, constant features). The trace of that root is the sum of the roots of the
    eigenvalues of `S2^(1/2) S1 S2^(1/2)`, which is symmetric.

    Args:
        second: whose root is computed once: the reference, where many are compared with it.

    Errors: ValueError if the features differ in width or were made by different weights.
    """
    require_same_width(first.mean_D, second.mean_D)
    if None not in (first.extractor, second.extractor) and first.extractor != second.extractor:
        raise ValueError(
            f"the two sets were described by different weights (sha256 {first.extractor} and "
            f"{second.extractor}): describe both with one extractor"
        )
    product_DD = second.covariance_root @ first.covariance_DD @ second.covariance_root
    overlap_D = torch.linalg.eigvalsh((product_DD + product_DD.mT) / 2).clamp(min=0).sqrt()
    shift = (first.mean_D - second.mean_D).square().sum()
    spread = first.covariance_DD.trace() + second.covariance_DD.trace()
    return max(0.0, (shift + spread - 2 * overlap_D.sum()).item())


def kernel_distance(
    first_XD: Tensor,
    second_YD: Tensor,
    generator: torch.Generator,
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    scale: float = 1.0,
) -> Estimate:
    """The unbiased squared MMD of random subsets (drawn without replacement), which may fall below 0.

    Args:
        scale: features are divided by it.

    Errors: ValueError if the features differ in width, or a set has fewer rows than a subset.
    """
    require_same_width(first_XD, second_YD)
    fewest = min(len(first_XD), len(second_YD))
    if not 2 <= subset_size <= fewest or num_subsets < 1:
        raise ValueError(
            f"expected at least one subset of 2 to {fewest} images, got {num_subsets} of {subset_size}"
        )
    values = [
        squared_mmd(*(_drawn(rows, subset_size, generator) / scale for rows in (first_XD, second_YD)))
        for _ in range(num_subsets)
    ]
    return _estimate(values)


def squared_mmd(first_XD: Tensor, second_YD: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel `(x y / D + 1)^3`."""
    first_XD, second_YD = first_XD.double(), second_YD.double()
    across_XY = _cubic_kernel(first_XD, second_YD)
    return (_mean_of_pairs(first_XD) + _mean_of_pairs(second_YD) - 2 * across_XY.mean()).item()


def inception_score(
    log_probabilities_XV: Tensor, generator: torch.Generator, *, num_splits: int = 10
) -> Estimate:
    """`exp E KL(p(y|x) || p(y))` of random splits, at least 1.

    Args:
        log_probabilities_XV: of every class, one row per image; -inf is allowed.

    Errors: ValueError for fewer images than splits.
    """
    count = len(log_probabilities_XV)
    if not 1 <= num_splits <= count:
        raise ValueError(f"expected 1 to {count} splits of {count} images, got {num_splits}")
    order_X = torch.randperm(count, generator=generator)
    bounds = [split * count // num_splits for split in range(num_splits + 1)]
    return _estimate(
        [
            _score_of_split(log_probabilities_XV[order_X[start:stop]])
            for start, stop in zip(bounds, bounds[1:], strict=False)
        ]
    )


def neighbourhoods(generated_XD: Tensor, real_YD: Tensor, *, nearest: int) -> Neighbourhoods:
    """Precision, recall, density and coverage by balls that reach to the `nearest`-th neighbour.

    Distances are computed block by block: memory grows with the number of images, never with its square.

    Errors: ValueError if the features differ in width, or a set has no `nearest` neighbours.
    """
    require_same_width(generated_XD, real_YD)
    origin_D = real_YD[0].double()  # near the data, so that squares do not cancel
    radius_X, radius_Y = (squared_radii(rows, nearest, origin_D) for rows in (generated_XD, real_YD))
    num_precise, num_balls = 0, 0
    recalled_Y = torch.zeros(len(real_YD), dtype=torch.bool, device=real_YD.device)
    covered_Y = recalled_Y.clone()
    rows = _rows_per_block(len(real_YD))
    for block_BD, radius_B in zip(generated_XD.split(rows), radius_X.split(rows), strict=True):
        distance_BY = _distances_to_all(block_BD, real_YD, origin_D)
        inside_BY = distance_BY <= radius_Y
        num_precise += int(inside_BY.any(dim=1).sum())
        num_balls += int(inside_BY.sum())
        covered_Y |= inside_BY.any(dim=0)
        recalled_Y |= (distance_BY <= radius_B[:, None]).any(dim=0)
    return Neighbourhoods(
        precision=num_precise / len(generated_XD),
        recall=recalled_Y.double().mean().item(),
        density=num_balls / (nearest * len(generated_XD)),
        coverage=covered_Y.double().mean().item(),
    )


def squared_radii(features_XD: Tensor, nearest: int, origin_D: Tensor | None = None) -> Tensor:
    """Squared distance of each row to its `nearest`-th other row: float64 [X].

    Args:
        origin_D: near the rows (default: the first), to be subtracted from them.

    Errors: ValueError for fewer than `nearest` other rows.
    """
    if not 1 <= nearest < len(features_XD):
        raise ValueError(
            f"neighbour {nearest} of an image needs at least {max(nearest, 1) + 1} images, got "
            f"{len(features_XD)}: give more, or choose nearer neighbours"
        )
    origin_D = features_XD[0].double() if origin_D is None else origin_D
    blocks = features_XD.split(_rows_per_block(len(features_XD)))
    # The nearest row is the row itself, at distance 0.
    radii = [
        _distances_to_all(block_BD, features_XD, origin_D).topk(nearest + 1, largest=False).values[:, -1]
        for block_BD in blocks
    ]
    return torch.cat(radii)


def squared_distances(first_XD: Tensor, second_YD: Tensor) -> Tensor:
    """Squared Euclidean distances [X, Y]; exactly 0 between rows that differ by rounding only."""
    scale_XY = first_XD.square().sum(dim=1)[:, None] + second_YD.square().sum(dim=1)
    distance_XY = torch.addmm(scale_XY, first_XD, second_YD.mT, alpha=-2)
    return distance_XY.masked_fill_(distance_XY <= _RESOLUTION * scale_XY, 0.0)


def _distances_to_all(block_BD: Tensor, rows_YD: Tensor, origin_D: Tensor) -> Tensor:
    """Squared distances [B, Y] in float64, of rows of any precision, few of which are float64 at a time."""
    block_BD = block_BD.double() - origin_D
    distance_BY = block_BD.new_empty(len(block_BD), len(rows_YD))
    for part_BY, part_YD in zip(distance_BY.split(_TOGETHER, 1), rows_YD.split(_TOGETHER), strict=True):
        part_BY.copy_(squared_distances(block_BD, part_YD.double() - origin_D))
    return distance_BY


def _cubic_kernel(first_XD: Tensor, second_YD: Tensor) -> Tensor:
    return (first_XD @ second_YD.mT / first_XD.shape[1] + 1) ** 3


def _mean_of_pairs(features_XD: Tensor) -> Tensor:
    """Mean of the kernel over pairs of different rows."""
    count = len(features_XD)
    kernel_XX = _cubic_kernel(features_XD, features_XD)
    return (kernel_XX.sum() - kernel_XX.trace()) / (count * (count - 1))


def _drawn(rows_XD: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return rows_XD[torch.randperm(len(rows_XD), generator=generator)[:count]]


def _score_of_split(log_probabilities_XV: Tensor) -> float:
    log_p_XV = log_probabilities_XV.double().clamp(min=_LOWEST_LOG)
    log_marginal_V = log_p_XV.exp().mean(dim=0).log()
    divergence_X = (log_p_XV.exp() * (log_p_XV - log_marginal_V)).sum(dim=1)
    return divergence_X.mean().exp().item()


def _estimate(values: list[float]) -> Estimate:
    values_S = torch.tensor(values, dtype=torch.float64)
    return Estimate(values_S.mean().item(), values_S.std(correction=0).item())


def _rows_per_block(columns: int) -> int:
    return max(1, _BLOCK_ENTRIES // columns)
