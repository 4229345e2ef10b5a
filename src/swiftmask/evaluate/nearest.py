"""Which training image each generated one is nearest to: whether a model copies, and what it composes.

Similarity is the cosine of features, centred on the mean of the training images. A generated image counts as
a copy if it is nearer to a training image than 99 of 100 real images that were not trained on: the held-out
ones or, where nothing is held out, each training image beside the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_QUANTILE = 0.99
_TOGETHER = 1024


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest training image of some images.

    Attributes:
        places_X: int64, its place among the training images.
        similarity_X: float32, cosine to it.
    """

    places_X: Tensor
    similarity_X: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Memorised:
    """What the nearest training images say.

    Attributes:
        count: images.
        similarity: mean cosine to the nearest training image.
        copies: share of images that are nearer to a training image than 99 of 100 unseen real images.
        known: images of which it is known what was asked for.
        shares: of the known ones, by what the nearest training image has in common with what was asked, as in
            "same concept, other style".
    """

    count: int
    similarity: float
    copies: float
    known: int
    shares: dict[str, float]


def nearest_of(features_XD: Tensor, trained_ND: Tensor, *, itself: bool = False) -> Nearest:
    """The training image with the most similar features.

    Args:
        itself: whether row i of both is one image, which is then passed over.
    """
    mean_D = trained_ND.mean(0)
    unit_ND = F.normalize(trained_ND - mean_D, dim=1)
    found = []
    for start in range(0, len(features_XD), _TOGETHER):
        part_XD = F.normalize(features_XD[start : start + _TOGETHER] - mean_D, dim=1)
        cosine_XN = part_XD @ unit_ND.T
        if itself:
            rows = torch.arange(len(part_XD))
            cosine_XN[rows, start + rows] = -2.0
        found.append(cosine_XN.max(dim=1))
    return Nearest(torch.cat([one.indices for one in found]), torch.cat([one.values for one in found]))


def copy_bound(trained_ND: Tensor, held_out_MD: Tensor) -> float:
    """The similarity above which an image counts as a copy."""
    if len(held_out_MD):
        unseen = nearest_of(held_out_MD, trained_ND)
    else:
        unseen = nearest_of(trained_ND, trained_ND, itself=True)
    return float(unseen.similarity_X.quantile(_QUANTILE))


def memorised(
    found: Nearest,
    bound: float,
    asked: Sequence[Mapping[str, str] | None],
    trained: Mapping[str, Sequence[str]],
) -> Memorised:
    """Shares of images by what they are nearest to.

    Args:
        asked: what each image was to show, by column; None where it is not known.
        trained: of the training images, by column.
    """
    rows = [(row, int(place)) for row, place in zip(asked, found.places_X, strict=True) if row]
    columns = [name for name in trained if rows and all(name in row for row, _ in rows)]
    counts: dict[str, int] = {}
    for row, place in rows if columns else ():
        same = {name: row[name] == trained[name][place] for name in columns}
        text = ", ".join(f"{'same' if same[name] else 'other'} {name}" for name in columns)
        counts[text] = counts.get(text, 0) + 1
    return Memorised(
        count=len(asked),
        similarity=float(found.similarity_X.mean()),
        copies=float((found.similarity_X > bound).float().mean()),
        known=len(rows) if columns else 0,
        shares={text: count / len(rows) for text, count in sorted(counts.items(), reverse=True)},
    )
