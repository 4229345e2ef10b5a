"""What every row of a study generates: classes or prompts, with paired image seeds.

Evaluation seed `s` gives an independent set of images. Image `i` of it has the same image seed and the same
class or prompt in every row, so rows differ in the method and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swiftmask.data.scenes import CLASS_NAMES, World

SEED_STRIDE = 1_000_003
"""Between the image seeds of two evaluation seeds."""

REAL_SEED, OTHER_REAL_SEED = 1 << 38, 1 << 39
"""Real images of Scenes have scene seeds from here on; training data begin at 2**40."""

VARIATIONS = 4
"""Images of each prompt that diversity is measured on."""

_VARIED_SEED = SEED_STRIDE // 2
"""Their image seeds, within those of an evaluation seed and beyond those of its other images."""

_NUM_VARIED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Classes or prompts, in turn; fewer images than there are of them are spread over all.

    Attributes:
        entries: class labels or prompts.
        names: the same as text, one per entry.
        first_seeds: of each entry's first image, where its file says; empty, or one for each entry.
        world: of captioned Scenes; each evaluation seed then has captions of its own, of scenes that no
            training saw, and entries are empty.
        diverse: whether the images of one prompt are compared with each other, which takes more images.
    """

    entries: tuple[Any, ...] = ()
    names: tuple[str, ...] = ()
    first_seeds: tuple[int | None, ...] = ()
    world: World | None = None
    diverse: bool = False

    def asked(self, seed: int, count: int) -> list[Any]:
        """Classes or prompts of `count` images."""
        if self.world is not None:
            return self.world.captions(scene_seeds(OTHER_REAL_SEED, seed, count))
        return [self.entries[place] for place in self._places(count)]

    def seeds(self, seed: int, count: int) -> list[int]:
        """Image seeds of `count` images; those of a prompt's file count from its first seed on."""
        seeds = image_seeds(seed, count)
        for index, place in enumerate(self._places(count)) if self.first_seeds else ():
            turn = index // len(self.entries)
            if (first := self.first_seeds[place]) is not None:
                seeds[index] = seed * SEED_STRIDE + first + turn
        return seeds

    def _places(self, count: int) -> list[int]:
        """Of the entries of `count` images: in turn, or spread over all of them where there are more."""
        number = len(self.entries)
        return [index * number // count if count < number else index % number for index in range(count)]

    def varied(self, seed: int, count: int) -> tuple[list[Any], list[int]]:
        """Further images, `VARIATIONS` in a line of each of at most 64 prompts, and their seeds."""
        unique = list(dict.fromkeys(self.asked(seed, count)))[:_NUM_VARIED] if self.diverse else []
        asked = [entry for entry in unique for _ in range(VARIATIONS)]
        return asked, [seed * SEED_STRIDE + _VARIED_SEED + index for index in range(len(asked))]

    def text(self, entry: Any) -> str:
        """A class or prompt as text."""
        return entry if isinstance(entry, str) else self.names[self.entries.index(entry)]

    def shown(self, count: int, of: int) -> tuple[list[Any], list[int]]:
        """A mixed handful of the first `of` requests, and image seeds: neighbours tend to look alike."""
        entries = self.entries or tuple(dict.fromkeys(self.asked(0, of)))
        places = [(7 * index + 4) % len(entries) for index in range(count)]
        firsts = [self.first_seeds[place] if self.first_seeds else None for place in places]
        seeds = [index if first is None else first for index, first in enumerate(firsts)]
        return [entries[place] for place in places], seeds


SCENES = Requests(entries=tuple(range(len(CLASS_NAMES))), names=CLASS_NAMES)
"""The classes of Scenes."""


def image_seeds(seed: int, count: int) -> list[int]:
    """Image seeds of an evaluation seed."""
    return [seed * SEED_STRIDE + index for index in range(count)]


def scene_seeds(first: int, seed: int, count: int) -> Tensor:
    """Scene seeds of an evaluation seed, int64 [count]."""
    return first + torch.tensor(image_seeds(seed, count))


def in_batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[first : first + size] for first in range(0, len(items), size)]
