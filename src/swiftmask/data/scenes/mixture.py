"""Which scenes a captioned data set shows: a mixture of simple and free ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from swiftmask.data.scenes.captions import captions
from swiftmask.data.scenes.world import NUM_CLASSES, Scenes, class_scenes, concat_scenes, sample_scenes


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Which scenes there are: a mixture of two kinds, dealt out evenly over the seeds.

    Attributes:
        simple_percent: how many of a hundred show what class pictures do: one upright object of two exact
            radii on a lattice, before a plain background. The others have one to three objects anywhere,
            tilted, on patterns. The simple ones are what two cores learn in an hour (docs/log.md).

    Errors: ValueError for less than none or more than all.
    """

    simple_percent: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.simple_percent <= 100:
            raise ValueError(f"simple_percent must lie in 0..100, got {self.simple_percent}")

    def scenes(self, seeds_B: Tensor) -> Scenes:
        """What the pictures of these seeds show."""
        labels_B = seeds_B % NUM_CLASSES
        # Steps of 37 mix neighbours, and over 4,800 seeds each class gets every residue once.
        simple_B = (seeds_B + seeds_B // NUM_CLASSES) * 37 % 100 < self.simple_percent
        parts = [class_scenes(labels_B[simple_B], seeds_B[simple_B]), sample_scenes(seeds_B[~simple_B])]
        return concat_scenes(parts)[simple_B.long().argsort(descending=True, stable=True).argsort()]

    def captions(self, seeds_B: Tensor) -> list[str]:
        """Their full captions."""
        return captions(self.scenes(seeds_B))
