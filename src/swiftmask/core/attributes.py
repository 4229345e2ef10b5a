"""Classes as sums of what they have in common: a start for class embeddings that are learned."""

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
