"""Scenes' judge as a scorer: facts that hold in the images, and a Fréchet distance to real Scenes.

Real images come from seeds that no training saw, at the size in pixels that the model generates: the judge
reads images at one size, and an image enlarged to it is not the same as one rendered at it, which a Fréchet
distance tells.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from swiftmask.data.scenes import FACT_KINDS, class_facts, class_scenes, parse_captions, render
from swiftmask.evaluate.distances import frechet_distance
from swiftmask.evaluate.extractors import JUDGE, Identity
from swiftmask.evaluate.feature_store import Readings
from swiftmask.evaluate.quantities import Quantity
from swiftmask.evaluate.requests import OTHER_REAL_SEED, REAL_SEED, Requests, scene_seeds
from swiftmask.evaluate.scorers import Generated, Images, diversity
from swiftmask.evaluate.statistics import FeatureStatistics, Moments
from swiftmask.rewards.scenes import SceneReader, found, score

_RENDERED_TOGETHER = 100

BY_KIND = "By kind of fact"
"""Heading of the second table: of the facts of each kind that are stated, the share that the judge finds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneScorer:
    """Share of the stated facts that the judge finds, and distance to real Scenes in its features.

    The captions of an evaluation seed are those of the second set of real images, which the floor compares
    with the first: a model whose images are as good as real ones reaches the floor.

    Attributes:
        judge: nothing is ever trained against it.
        reward: the reader that training may use, if its score is wanted beside the judge's.
        size: side of real images in pixels.
    """

    judge: SceneReader
    requests: Requests
    size: int
    reward: SceneReader | None = None
    identity: Identity = Identity(JUDGE, "")
    _known: dict[tuple[int, int], tuple[Moments, float]] = field(default_factory=dict, repr=False)

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        main = [
            Quantity(key="score", label="judge score", higher_is_better=True, compared=True),
            Quantity(key="fd_scenes", label="fd_scenes", higher_is_better=False, compared=True),
        ]
        if self.reward is not None:
            main.append(Quantity(key="training_reward", label="training reward", higher_is_better=True))
        if self.requests.diverse:
            main.append(Quantity(key="diversity", label="diversity", higher_is_better=True))
        kinds = [
            Quantity(key=f"fact_{kind}", label=kind, higher_is_better=True, group=BY_KIND)
            for kind in FACT_KINDS
        ]
        return (*main, *kinds)

    @property
    def note(self) -> str:
        parts = [
            "Judge score: share of the stated facts that the judge finds in the images. fd_scenes: Fréchet "
            "distance to as many real images in the judge's features."
        ]
        if self.reward is not None:
            parts.append("Training reward: the same score by the reader that training may use.")
        if self.requests.diverse:
            parts.append(
                "Diversity: how much the images of one prompt differ (1 - cosine of the judge's features, "
                "mean over pairs and prompts)."
            )
        return " ".join(parts)

    def read(self, generated: Generated, asked: Sequence[Any]) -> Readings:
        images_B3HW = generated.images_B3HW.float()
        facts = class_facts(torch.tensor(asked)) if self.requests.world is None else parse_captions(asked)
        num_true_BK, num_stated_BK = found(self.judge, images_B3HW, facts)
        readings = {
            "features": self.judge.features(images_B3HW),
            "true": num_true_BK,
            "stated": num_stated_BK,
        }
        if self.reward is not None:
            readings["reward"] = score(self.reward, images_B3HW, facts)
        return {name: rows.cpu() for name, rows in readings.items()}

    def values(self, images: Images) -> dict[str, float]:
        true_XK, stated_XK = images.own["true"], images.own["stated"]
        shares_X = true_XK.sum(dim=1) / stated_XK.sum(dim=1).clamp(min=1)
        ours = FeatureStatistics.of(images.own["features"]).moments()
        real, _ = self._real(images.seed, len(shares_X))
        values = {"score": shares_X.double().mean().item(), "fd_scenes": frechet_distance(ours, real)}
        if self.reward is not None:
            values["training_reward"] = images.own["reward"].double().mean().item()
        if images.varied is not None:
            values["diversity"] = diversity(images.varied["features"])
        totals = zip(FACT_KINDS, true_XK.sum(dim=0).tolist(), stated_XK.sum(dim=0).tolist(), strict=True)
        return values | {f"fact_{kind}": true / stated for kind, true, stated in totals if stated}

    def floors(self, seed: int, count: int) -> dict[str, float]:
        return {"fd_scenes": self._real(seed, count)[1]}

    def _real(self, seed: int, count: int) -> tuple[Moments, float]:
        """Moments of `count` real images, and the distance of `count` others to them."""
        if (seed, count) not in self._known:
            real, others = (self._moments(first, seed, count) for first in (REAL_SEED, OTHER_REAL_SEED))
            self._known[seed, count] = real, frechet_distance(real, others)
        return self._known[seed, count]

    def _moments(self, first: int, seed: int, count: int) -> Moments:
        features = [self.judge.features(images_B3HW) for images_B3HW in self._rendered(first, seed, count)]
        return FeatureStatistics.of(torch.cat(features)).moments()

    def _rendered(self, first: int, seed: int, count: int) -> Iterator[Tensor]:
        seeds_X = scene_seeds(first, seed, count)
        if (world := self.requests.world) is not None:
            return (render(world.scenes(part), self.size) for part in seeds_X.split(_RENDERED_TOGETHER))
        labels_X = torch.tensor(self.requests.asked(seed, count))
        parts = zip(labels_X.split(_RENDERED_TOGETHER), seeds_X.split(_RENDERED_TOGETHER), strict=True)
        return (render(class_scenes(*part), self.size) for part in parts)
