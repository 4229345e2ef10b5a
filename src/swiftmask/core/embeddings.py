"""Starts for embeddings that are learned: what is alike starts alike."""

import torch
from torch import Tensor


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


def codes_like_latents(codebook_VC: Tensor, width: int) -> Tensor:
    """For each code its latent, centred, at random angles in `width` dimensions: [V, width], deviation 1.

    Codes that look alike are then read, or predicted, alike.
    """
    centred_VC = codebook_VC - codebook_VC.mean(0)
    rows_VD = centred_VC @ torch.randn(codebook_VC.shape[1], width)
    return rows_VD / rows_VD.std()


def other_classes(classes_ND: Tensor, attributes_NA: Tensor) -> Tensor:
    """Embeddings for other classes of a trained model: around the mean of its own, and as far from it.

    Args:
        attributes_NA: of the other classes, as for `attribute_sums`.
    """
    mean_D, deviation = classes_ND.mean(0), (classes_ND - classes_ND.mean(0)).square().mean().sqrt()
    return mean_D + deviation * attribute_sums(attributes_NA, classes_ND.shape[1])
