"""Quality of one row of a comparison: a way to draw pictures, judged on Scenes with paired seeds.

Evaluation seed `s` gives an independent set of pictures; picture `i` of it has the same image seed and the
same label in every row, so rows differ in the method and nothing else. Pictures arrive through a callable:
nothing here knows a model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from torch import Tensor

from swiftmask.data.scenes import NUM_CLASSES, class_scenes, render
from swiftmask.evaluate.distances import frechet_distance
from swiftmask.evaluate.memory import peak_memory_bytes, reset_peak_memory
from swiftmask.evaluate.statistics import FeatureStatistics, Moments
from swiftmask.rewards.scenes import SceneReader, class_reward

SEED_STRIDE = 1_000_003
REAL_SEED, OTHER_REAL_SEED = 1 << 38, 1 << 39
"""Real pictures have scene seeds from here on; training data begin at 2**40."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures [B, 3, H, W] in [0, 1], their tokens [B, L] or [B, L, C], and the seconds of the token
    decode.
    """

    images_B3HW: Tensor
    tokens_BL: Tensor
    seconds: float


Draw = Callable[[list[int], list[int]], Drawn]
"""`draw(labels, seeds) -> Drawn`: one picture per label and image seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to draw pictures, and what it costs.

    Attributes:
        name: unique, for example "shortcut-16:4".
        series: rows of one method share it ("vanilla", "shortcut", "reuse", ...).
        full_steps: how many of `steps` run the backbone.
        flops: operations of the token decode of one picture.
        command: what measures this row alone.
        fingerprint: of weights and schedule; a stored measurement counts only under the same one.
        reference: the row whose tokens these should be (same seeds, same steps, full model), if any; real
            tokens are never quite the same and have none.
    """

    name: str
    series: str
    steps: int
    full_steps: int
    calls: dict[str, int]
    flops: int
    command: str
    fingerprint: str
    draw: Draw
    device: torch.device = torch.device("cpu")
    reference: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How much is drawn: `num_pictures` for each of `num_seeds` evaluation seeds, `batch_size` at a time."""

    num_pictures: int = 700
    num_seeds: int = 3
    batch_size: int = 100

    def __post_init__(self) -> None:
        if self.num_pictures < 2:
            raise ValueError(f"quality needs at least 2 pictures per seed, got {self.num_pictures}")
        if self.num_seeds < 1 or self.batch_size < 1:
            raise ValueError(
                f"at least 1 seed, a batch of at least 1: got {self.num_seeds} and {self.batch_size}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One row under one evaluation seed.

    Attributes:
        score: share of the stated facts that the judge finds in the pictures.
        fd_scenes, floor: distance to real pictures, and of other real pictures to them, at the same N.
        agreement: share of tokens equal to the reference row's, if there is one.
        ms_per_picture: token decode only, median over batches.
    """

    row: str
    fingerprint: str
    seed: int
    num_pictures: int
    batch_size: int
    score: float
    fd_scenes: float
    floor: float
    agreement: float | None
    ms_per_picture: float
    peak_memory_bytes: int


def picture_labels(count: int) -> list[int]:
    return [index % NUM_CLASSES for index in range(count)]


def picture_seeds(seed: int, count: int) -> list[int]:
    return [seed * SEED_STRIDE + index for index in range(count)]


@dataclass
class RealPictures:
    """Moments of the judge's features of real pictures, and the floor, per evaluation seed; kept."""

    reader: SceneReader
    _known: dict[tuple[int, int], tuple[Moments, float]] = field(default_factory=dict)

    def at(self, seed: int, count: int) -> tuple[Moments, float]:
        """Moments of `count` real pictures, and the distance of `count` others to them."""
        if (seed, count) not in self._known:
            real = self._moments(REAL_SEED, seed, count)
            others = self._moments(OTHER_REAL_SEED, seed, count)
            self._known[seed, count] = real, frechet_distance(real, others)
        return self._known[seed, count]

    def _moments(self, first: int, seed: int, count: int) -> Moments:
        labels_X = torch.tensor(picture_labels(count))
        seeds_X = first + torch.tensor(picture_seeds(seed, count))
        parts = zip(labels_X.split(100), seeds_X.split(100), strict=True)
        features = [self.reader.features(render(class_scenes(*part))) for part in parts]
        return FeatureStatistics.of(torch.cat(features)).moments()


def measure(
    row: Row,
    seed: int,
    sample: Sample,
    real: RealPictures,
    *,
    reference_XL: np.ndarray | None = None,
    on_pictures: Callable[[int], None] = lambda count: None,
) -> tuple[Measurement, np.ndarray]:
    """Draw and judge the row's pictures of one evaluation seed; also returns their tokens [X, L] (or [X, L,
    C]).

    Args:
        reference_XL: tokens of the reference row under the same seed.
        on_pictures: told after every batch how many pictures it had.
    """
    labels, seeds = picture_labels(sample.num_pictures), picture_seeds(seed, sample.num_pictures)
    judge = class_reward(real.reader)
    features, scores, tokens, times = [], [], [], []
    reset_peak_memory(row.device)
    for first in range(0, sample.num_pictures, sample.batch_size):
        part = slice(first, first + sample.batch_size)
        drawn = row.draw(labels[part], seeds[part])
        images_B3HW = drawn.images_B3HW.float()
        features.append(real.reader.features(images_B3HW).cpu())
        scores.append(judge(images_B3HW, torch.tensor(labels[part])).cpu())
        tokens.append(_kept(drawn.tokens_BL))
        times.append(1000 * drawn.seconds / len(drawn.tokens_BL))
        on_pictures(len(drawn.tokens_BL))
    memory = peak_memory_bytes(row.device)
    moments_of_real, floor = real.at(seed, sample.num_pictures)
    tokens_XL = torch.cat(tokens).numpy()
    measurement = Measurement(
        row=row.name,
        fingerprint=row.fingerprint,
        seed=seed,
        num_pictures=sample.num_pictures,
        batch_size=sample.batch_size,
        score=torch.cat(scores).double().mean().item(),
        fd_scenes=frechet_distance(FeatureStatistics.of(torch.cat(features)).moments(), moments_of_real),
        floor=floor,
        agreement=None if reference_XL is None else float((tokens_XL == reference_XL).mean()),
        ms_per_picture=median(times),
        peak_memory_bytes=memory,
    )
    return measurement, tokens_XL


def _kept(tokens_BL: Tensor) -> Tensor:
    """Tokens as they are stored: codes in 32 bits."""
    return tokens_BL.cpu() if tokens_BL.is_floating_point() else tokens_BL.cpu().to(torch.int32)
