"""Which scenes a captioned data set shows: a mixture of simple and free ones."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from swiftmask.core.ranges import check_fields
from swiftmask.data.scenes.captions import captions
from swiftmask.data.scenes.world import (
    NUM_CLASSES,
    Scenes,
    class_scenes,
    concat_scenes,
    sample_scenes,
    simple_scenes,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Which scenes there are: a mixture of three kinds, dealt out evenly over the seeds.

    Attributes:
        simple_percent: how many of a hundred are as simple as class images: upright objects of two exact
            radii on a lattice, before a plain background. The others have one to three objects anywhere,
            tilted, on patterns. The simple ones are what two cores learn in an hour (docs/log.md).
        single_percent: how many of a hundred simple ones show one object; the others show two or three.

    Errors: ValueError for less than none or more than all.
    """

    simple_percent: int = 100
    single_percent: int = 50

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def name(self) -> str:
        """For files made from these scenes alone."""
        return f"simple{self.simple_percent}-single{self.single_percent}"

    def scenes(self, seeds_B: Tensor) -> Scenes:
        """What the images of these seeds show."""
        labels_B = seeds_B % NUM_CLASSES
        # Steps of 37 mix neighbours, and over 4,800 seeds each class gets every residue once.
        place_B = (seeds_B + seeds_B // NUM_CLASSES) * 37 % 100
        simple_B = place_B < self.simple_percent
        single_B = simple_B & (place_B * 100 < self.simple_percent * self.single_percent)
        several_B = simple_B & ~single_B
        parts = [
            class_scenes(labels_B[single_B], seeds_B[single_B]),
            simple_scenes(seeds_B[several_B]),
            sample_scenes(seeds_B[~simple_B]),
        ]
        kind_B = 2 - simple_B.long() - single_B.long()
        return concat_scenes(parts)[kind_B.argsort(stable=True).argsort()]

    def captions(self, seeds_B: Tensor) -> list[str]:
        """Their full captions."""
        return captions(self.scenes(seeds_B))
