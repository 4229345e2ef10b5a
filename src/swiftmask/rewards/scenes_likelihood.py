"""The training reward of Scenes as something to differentiate: how likely a reader finds a class's facts.

`rewards.scenes` counts which facts hold, after an argmax; through that no gradient passes. Here the same
network's probabilities are kept. Only for training: what evaluation reports is the count, by the judge.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from swiftmask.data.scenes import class_attributes
from swiftmask.rewards.scenes import NetworkReader, to_input

_ONE_OBJECT = 1
"""Place of "one" among the reader's counts, which start at none."""


def class_log_likelihood(reader: NetworkReader) -> Callable[[Tensor, Sequence[int]], Tensor]:
    """`reward(images_B3HW, labels) -> scores_B`: log-probability in nats of a class's three facts (one
    object, its shape, its colour), their mean, at most 0.

    Logarithms, because the gradient of a probability vanishes where an image is plainly wrong. Shape and
    colour are read where the reader sees an object's centre, as when facts are counted.
    """

    def reward(images_B3HW: Tensor, labels: Sequence[int]) -> Tensor:
        reading, _ = reader.network(to_input(images_B3HW))
        shape_B, colour_B = class_attributes(torch.tensor(labels).to(images_B3HW.device)).unbind(1)
        at_BL = reading.heat_BHW.flatten(1).log_softmax(dim=1)
        count_B = reading.count_BK.log_softmax(dim=1)[:, _ONE_OBJECT]
        shape = _named(reading.shape_BHWK, shape_B, at_BL)
        return (count_B + shape + _named(reading.colour_BHWK, colour_B, at_BL)) / 3

    return reward


def _named(logits_BHWK: Tensor, index_B: Tensor, at_BL: Tensor) -> Tensor:
    """Log-probability of a name, averaged over places with the weights `at_BL` (logarithms, too)."""
    log_probs_BLK = logits_BHWK.flatten(1, 2).log_softmax(dim=-1)
    index_BL1 = index_B[:, None, None].expand(-1, log_probs_BLK.shape[1], 1)
    return torch.logsumexp(at_BL + log_probs_BLK.gather(-1, index_BL1)[..., 0], dim=1)
