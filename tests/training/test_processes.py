"""Moving a batch to the device of the training."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from swiftmask.training.processes import to_device


class Pair(NamedTuple):
    left: Tensor
    right: int


@dataclass(frozen=True, slots=True)
class Nest:
    pair: Pair
    links: tuple[Tensor, ...]
    named: dict[str, list[Tensor]]
    absent: Tensor | None
    what: list[str]


def test_every_tensor_of_a_nest_moves_and_nothing_else_changes() -> None:
    def x() -> Tensor:
        return torch.zeros(2)

    nest = Nest(Pair(x(), 3), (x(), x()), {"a": [x()]}, None, ["red"])
    moved = to_device(nest, torch.device("meta"))
    tensors = [moved.pair.left, *moved.links, *moved.named["a"]]
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 4
    assert (type(moved.pair), moved.pair.right, moved.absent, moved.what) == (Pair, 3, None, ["red"])
    assert nest.pair.left.device.type == "cpu"
