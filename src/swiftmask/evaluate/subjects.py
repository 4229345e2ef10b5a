"""What a study asks every row to draw, and the real pictures that the drawn ones are held against.

Real pictures come from seeds that no training saw, at the size in pixels that the model draws: the judge
reads pictures at one size, and a picture enlarged to it is not the same as one rendered at it, which a
Frechet distance tells.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from swiftmask.data.scenes import (
    NUM_CLASSES,
    Facts,
    World,
    class_facts,
    class_scenes,
    parse_captions,
    render,
)

SEED_STRIDE = 1_000_003
REAL_SEED, OTHER_REAL_SEED = 1 << 38, 1 << 39
"""Real pictures have scene seeds from here on; training data begin at 2**40."""

_RENDERED_TOGETHER = 100
_NUM_VARIED = 64
"""Prompts that are drawn several times over, to see how much their pictures differ."""


class Subjects(Protocol):
    """Entry `i` of an evaluation seed is the same in every row."""

    def asked(self, seed: int, count: int) -> Sequence[Any]:
        """What to draw: class labels or prompts."""
        ...

    def varied(self, seed: int, count: int) -> Sequence[Any]:
        """Those of them whose pictures are compared with each other; none where a class is no prompt."""
        ...

    def facts(self, asked: Sequence[Any]) -> Facts:
        """What is stated by some of them."""
        ...

    def real(self, first: int, seed: int, count: int) -> Iterator[Tensor]:
        """Batches of `count` real pictures in all, with scene seeds from `first` on."""
        ...


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of Scenes in turn, 64x64 pixels; the same for every evaluation seed."""

    def asked(self, seed: int, count: int) -> list[int]:
        return picture_labels(count)

    def varied(self, seed: int, count: int) -> list[int]:
        return []

    def facts(self, asked: Sequence[int]) -> Facts:
        return class_facts(torch.tensor(asked))

    def real(self, first: int, seed: int, count: int) -> Iterator[Tensor]:
        labels_X = torch.tensor(picture_labels(count))
        seeds_X = first + torch.tensor(picture_seeds(seed, count))
        parts = zip(labels_X.split(_RENDERED_TOGETHER), seeds_X.split(_RENDERED_TOGETHER), strict=True)
        return (render(class_scenes(*part)) for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """Captions of scenes that no training saw, others for each evaluation seed.

    They are those of the second set of real pictures, which the floor compares with the first: a model whose
    pictures are as good as real ones reaches the floor.

    Attributes:
        world: which scenes there are.
        size: side of the pictures in pixels.
    """

    world: World
    size: int

    def asked(self, seed: int, count: int) -> list[str]:
        return self.world.captions(_scene_seeds(OTHER_REAL_SEED, seed, count))

    def varied(self, seed: int, count: int) -> list[str]:
        return list(dict.fromkeys(self.asked(seed, count)))[:_NUM_VARIED]

    def facts(self, asked: Sequence[str]) -> Facts:
        return parse_captions(asked)

    def real(self, first: int, seed: int, count: int) -> Iterator[Tensor]:
        seeds_X = _scene_seeds(first, seed, count)
        return (render(self.world.scenes(part), self.size) for part in seeds_X.split(_RENDERED_TOGETHER))


def picture_labels(count: int) -> list[int]:
    return [index % NUM_CLASSES for index in range(count)]


def picture_seeds(seed: int, count: int) -> list[int]:
    return [seed * SEED_STRIDE + index for index in range(count)]


def _scene_seeds(first: int, seed: int, count: int) -> Tensor:
    return first + torch.tensor(picture_seeds(seed, count))
