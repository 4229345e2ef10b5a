"""Starts for embeddings that are learned: what is alike starts alike."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def attribute_sums(attributes_NA: Tensor, width: int) -> Tensor:
    """For each class the sum of one random vector per attribute: [N, width], of unit deviation.

    Args:
        attributes_NA: integers, A for each class, such as its shape and its colour: what a class has in
            common with others is then learned from all of them.
    """
    sums_ND = torch.zeros(len(attributes_NA), width)
    for attribute_N in attributes_NA.unbind(1):
        sums_ND += torch.randn(int(attribute_N.max()) + 1, width)[attribute_N]
    return sums_ND / sums_ND.std()


def attribute_sizes(attributes_NA: Tensor) -> tuple[int, ...]:
    """How many values each attribute has."""
    return tuple(int(attribute_N.max()) + 1 for attribute_N in attributes_NA.unbind(1))


def attribute_rows(attributes_NA: Tensor) -> Tensor:
    """Rows of each class in a table that holds the values of all attributes, one after the other: int32
    [N, A].
    """
    sizes = torch.tensor(attribute_sizes(attributes_NA))
    return (attributes_NA + sizes.cumsum(0) - sizes).to(torch.int32)


def check_attribute_rows(rows_NA: Tensor, sizes: Sequence[int], *, source: str) -> None:
    """Errors: ValueError naming `source` for rows on disk that are not those of attributes of these sizes."""
    ends_A = torch.tensor(sizes).cumsum(0)
    whole = not rows_NA.is_floating_point()
    if not whole or ((rows_NA >= ends_A) | (rows_NA < ends_A - torch.tensor(sizes))).any():
        raise ValueError(
            f"{source}: class_rows do not fit class_attributes {list(sizes)}: the file is damaged"
        )


def composed(table_SD: Tensor, rows_NA: Tensor, labels: Tensor) -> Tensor:
    """Vectors [..., D] of classes that are the sum of their attributes'.

    Args:
        table_SD: one vector for each value of each attribute.
        rows_NA: of each class, from `attribute_rows`.
        labels: int64 of any shape.
    """
    return F.embedding(rows_NA[labels], table_SD).sum(-2)


def codes_like_latents(codebook_VC: Tensor, width: int) -> Tensor:
    """For each code its latent, centred, at random angles in `width` dimensions: [V, width], deviation 1.

    Codes that look alike are then read, or predicted, alike.
    """
    centred_VC = codebook_VC - codebook_VC.mean(0)
    rows_VD = centred_VC @ torch.randn(codebook_VC.shape[1], width)
    return rows_VD / rows_VD.std()


def rows_like(looks_VF: Tensor, width: int) -> Tensor:
    """For each of V things a vector that resembles those of things that look alike: [V, width], deviation 1.

    Principal components of the looks, each as large as the square root of its deviation, at random angles;
    a tenth of the variance is noise, which tells things of the same looks apart.
    """
    centred_VF = looks_VF - looks_VF.mean(0)
    left_VK, sizes_K, _ = torch.linalg.svd(centred_VF.double(), full_matrices=False)
    angles_DD = torch.linalg.qr(torch.randn(width, width))[0]
    kept = min(width, len(sizes_K))
    rows_VD = (left_VK[:, :kept] * sizes_K[:kept].sqrt()).float() @ angles_DD[:kept]
    mixed_VD = 0.95 * rows_VD / rows_VD.std().clamp(min=1e-12) + 0.3 * torch.randn(len(looks_VF), width)
    return mixed_VD / mixed_VD.std()


def other_classes(classes_ND: Tensor, attributes_NA: Tensor) -> Tensor:
    """Embeddings for other classes of a trained model: around the mean of its own, and as far from it.

    Args:
        attributes_NA: of the other classes, as for `attribute_sums`.
    """
    mean_D, deviation = classes_ND.mean(0), (classes_ND - classes_ND.mean(0)).square().mean().sqrt()
    return mean_D + deviation * attribute_sums(attributes_NA, classes_ND.shape[1])


def other_attributes(classes_ND: Tensor, sizes: Sequence[int]) -> Tensor:
    """Vectors [S, D] of attributes with so many values, whose sums are like `other_classes`."""
    mean_D, deviation = classes_ND.mean(0), (classes_ND - classes_ND.mean(0)).square().mean().sqrt()
    noise_SD = torch.randn(sum(sizes), classes_ND.shape[1])
    return mean_D / len(sizes) + deviation * len(sizes) ** -0.5 * noise_SD
