"""Quality of one row of a comparison: a way to draw pictures, judged on Scenes with paired seeds.

Evaluation seed `s` gives an independent set of pictures; picture `i` of it has the same image seed and the
same label or prompt in every row, so rows differ in the method and nothing else. Pictures arrive through a
callable: nothing here knows a model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swiftmask.data.scenes import FACT_KINDS
from swiftmask.evaluate.distances import frechet_distance
from swiftmask.evaluate.drift import diversity
from swiftmask.evaluate.memory import peak_memory_bytes, reset_peak_memory
from swiftmask.evaluate.statistics import FeatureStatistics, Moments
from swiftmask.evaluate.subjects import (
    OTHER_REAL_SEED,
    REAL_SEED,
    SEED_STRIDE,
    Classes,
    Subjects,
    picture_seeds,
)
from swiftmask.evaluate.subjects import picture_labels as picture_labels
from swiftmask.rewards.scenes import SceneReader, found, score

VARIATIONS = 4
"""Pictures of each prompt that diversity is measured on."""

_VARIED_SEED = SEED_STRIDE // 2
"""Their image seeds, within those of an evaluation seed and beyond those of its other pictures."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures [B, 3, H, W] in [0, 1], their tokens [B, L] or [B, L, C], and the seconds of the token
    decode.
    """

    images_B3HW: Tensor
    tokens_BL: Tensor
    seconds: float


Draw = Callable[[Any, list[int]], Drawn]
"""`draw(what, seeds) -> Drawn`: one picture per label or prompt, and image seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to draw pictures, and what it costs.

    Attributes:
        name: unique, for example "shortcut-16:4".
        series: rows of one method share it ("vanilla", "shortcut", "reuse", ...).
        full_steps: how many of `steps` run the backbone.
        flops: operations of the token decode of one picture.
        command: what measures this row alone.
        fingerprint: of weights, settings and schedule; a stored measurement counts only under the same one.
        reference: the row whose tokens these should be (same seeds, same steps, full model), if any; real
            tokens are never quite the same and have none.
        subjects: what it is asked to draw.
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
    subjects: Subjects = Classes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How much is drawn: `num_pictures` for each of `num_seeds` evaluation seeds, `batch_size` at a time."""

    num_pictures: int = 700
    num_seeds: int = 3
    batch_size: int = 100

    def __post_init__(self) -> None:
        if self.num_pictures < 2:
            raise ValueError(f"quality needs at least 2 images per seed, got {self.num_pictures}")
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
        training_reward: the same score by the reader that training may use; None if it was not asked.
        diversity: within a prompt, mean over prompts (drift.py); None for classes.
        by_kind: share of the stated facts of each kind that the judge finds; None if it was not asked.
        commit, date: when it was measured; None if nobody said.
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
    training_reward: float | None = None
    diversity: float | None = None
    by_kind: dict[str, float] | None = None
    commit: str | None = None
    date: str | None = None


@dataclass
class RealPictures:
    """Moments of the judge's features of real pictures, and the floor, per evaluation seed; kept.

    Attributes:
        reader: the judge.
        subjects: what real pictures show.
        reward: the reader that training may use, if its score is wanted beside the judge's.
    """

    reader: SceneReader
    subjects: Subjects = Classes()
    reward: SceneReader | None = None
    _known: dict[tuple[int, int], tuple[Moments, float]] = field(default_factory=dict)

    def at(self, seed: int, count: int) -> tuple[Moments, float]:
        """Moments of `count` real pictures, and the distance of `count` others to them."""
        if (seed, count) not in self._known:
            real = self._moments(REAL_SEED, seed, count)
            others = self._moments(OTHER_REAL_SEED, seed, count)
            self._known[seed, count] = real, frechet_distance(real, others)
        return self._known[seed, count]

    def _moments(self, first: int, seed: int, count: int) -> Moments:
        features = [self.reader.features(images) for images in self.subjects.real(first, seed, count)]
        return FeatureStatistics.of(torch.cat(features)).moments()


@dataclass
class _Findings:
    """What is found in the pictures of a row, batch by batch."""

    features: list[Tensor] = field(default_factory=list)
    num_true: list[Tensor] = field(default_factory=list)
    num_stated: list[Tensor] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def add(self, drawn: Drawn, asked: Sequence[Any], real: RealPictures) -> None:
        images_B3HW, facts = drawn.images_B3HW.float(), real.subjects.facts(asked)
        self.features.append(real.reader.features(images_B3HW).cpu())
        num_true_BK, num_stated_BK = found(real.reader, images_B3HW, facts)
        self.num_true.append(num_true_BK.cpu())
        self.num_stated.append(num_stated_BK.cpu())
        if real.reward is not None:
            self.rewards.append(score(real.reward, images_B3HW, facts).cpu())
        self.tokens.append(_kept(drawn.tokens_BL))
        self.times.append(1000 * drawn.seconds / len(drawn.tokens_BL))

    def score(self) -> float:
        """Share of the stated facts that hold, mean over pictures."""
        num_true_XK, num_stated_XK = torch.cat(self.num_true), torch.cat(self.num_stated)
        return _mean([num_true_XK.sum(dim=1) / num_stated_XK.sum(dim=1).clamp(min=1)])

    def by_kind(self) -> dict[str, float]:
        """Share of the stated facts of each kind that hold, over all pictures; kinds that none states are
        left out.
        """
        num_true_K, num_stated_K = torch.cat(self.num_true).sum(dim=0), torch.cat(self.num_stated).sum(dim=0)
        counts = zip(FACT_KINDS, num_true_K.tolist(), num_stated_K.tolist(), strict=True)
        return {kind: true / stated for kind, true, stated in counts if stated}


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
    asked = real.subjects.asked(seed, sample.num_pictures)
    seeds = picture_seeds(seed, sample.num_pictures)
    findings = _Findings()
    reset_peak_memory(row.device)
    for first in range(0, sample.num_pictures, sample.batch_size):
        part = slice(first, first + sample.batch_size)
        drawn = row.draw(asked[part], seeds[part])
        findings.add(drawn, asked[part], real)
        on_pictures(len(drawn.tokens_BL))
    memory = peak_memory_bytes(row.device)
    moments_of_real, floor = real.at(seed, sample.num_pictures)
    features = FeatureStatistics.of(torch.cat(findings.features))
    tokens_XL = torch.cat(findings.tokens).numpy()
    measurement = Measurement(
        row=row.name,
        fingerprint=row.fingerprint,
        seed=seed,
        num_pictures=sample.num_pictures,
        batch_size=sample.batch_size,
        score=findings.score(),
        fd_scenes=frechet_distance(features.moments(), moments_of_real),
        floor=floor,
        agreement=None if reference_XL is None else float((tokens_XL == reference_XL).mean()),
        ms_per_picture=median(findings.times),
        peak_memory_bytes=memory,
        training_reward=_mean(findings.rewards) if findings.rewards else None,
        diversity=_diversity(row, seed, sample, real),
        by_kind=findings.by_kind(),
    )
    return measurement, tokens_XL


def _diversity(row: Row, seed: int, sample: Sample, real: RealPictures) -> float | None:
    """Within a prompt, in the judge's features; on pictures of their own."""
    varied = real.subjects.varied(seed, sample.num_pictures)
    if not varied:
        return None
    asked = [entry for entry in varied for _ in range(VARIATIONS)]
    seeds = [seed * SEED_STRIDE + _VARIED_SEED + index for index in range(len(asked))]
    features = []
    for first in range(0, len(asked), sample.batch_size):
        part = slice(first, first + sample.batch_size)
        drawn = row.draw(asked[part], seeds[part])
        features.append(real.reader.features(drawn.images_B3HW.float()).cpu())
    return diversity(torch.cat(features).unflatten(0, (len(varied), VARIATIONS))).mean().item()


def _mean(scores: Sequence[Tensor]) -> float:
    return torch.cat(list(scores)).double().mean().item()


def _kept(tokens_BL: Tensor) -> Tensor:
    """Tokens as they are stored: codes in 32 bits."""
    return tokens_BL.cpu() if tokens_BL.is_floating_point() else tokens_BL.cpu().to(torch.int32)
