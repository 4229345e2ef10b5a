"""MARVAL-RL (arXiv 2511.15190): a student tuned by differentiating a reward through its whole decode.

Token order and counts do not depend on the weights and tokens are continuous, so the pathwise gradient is
exact: no likelihoods, no policy gradient. Every step's backbone and head are computed again in the backward
pass; what lives through a decode of any length is its tokens, the few contexts they were drawn from, and
the activations of one step. `grad_iterations` stops the gradient before the last steps (DRaFT-K,
arXiv 2309.17400). Against reward hacking, `RegularizedTrainer` adds the distillation's own loss on real
contexts, its auxiliary network kept up to date (Diff-Instruct*).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swiftmask.core.decode import FullFeatures, decode
from swiftmask.core.protocol import Condition, MaskedGenerator, SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.rng import SeededNoise
from swiftmask.core.types import Canvas, Features, Record, Step
from swiftmask.methods.marval.student import Student
from swiftmask.methods.marval.training import MarvalBatch, MarvalBatches, MarvalTrainer, Turn
from swiftmask.training.frozen import Outside, keep_frozen_out_of_state
from swiftmask.training.setup import step_seed

Reward = Callable[[Tensor, Sequence[int] | Sequence[str]], Tensor]
"""`reward(images_B3HW, what) -> scores_B`, differentiable in images in [0, 1]; `what` was to be generated."""

Pixels = Callable[[Tensor], Tensor]
"""`to_pixels(tokens_BLC) -> images_B3HW`, nominally in [0, 1]."""

_IMAGE_STREAM = 0x70696374
"""Keeps the seeds of images apart from those of updates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig:
    """Settings of reward tuning.

    Attributes:
        num_steps: K, decode steps of a roll-out.
        grad_iterations: how many of them, counted from the last, carry gradients; None is all.
        images_per_update: images decoded and scored in one update of one process.
        temperature: of the decode.
        divergence_weight: of the distillation's loss (`RegularizedTrainer`).
    """

    num_steps: int = 16
    grad_iterations: int | None = None
    images_per_update: int = 16
    temperature: float = 1.0
    divergence_weight: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.grad_iterations is not None and self.grad_iterations > self.num_steps:
            raise ValueError(
                f"grad_iterations must be between 1 and num_steps ({self.num_steps}), "
                f"got {self.grad_iterations}: leave it out for all"
            )


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """What to generate (labels or prompts), and with which seeds."""

    what: Sequence[int] | Sequence[str]
    seeds: Sequence[int]


@dataclass(frozen=True, slots=True)
class RegularizedBatch:
    """A reward batch and the real contexts that hold the student to its teacher."""

    rewarded: RewardBatch
    real: MarvalBatch


class RewardBatches:
    """Batches as a function of the step: random entries of `what`, each image with its own seed."""

    def __init__(self, what: Sequence[int] | Sequence[str], config: RewardConfig) -> None:
        self._what = what
        self._config = config

    def __call__(self, step: int, rank: int, num_ranks: int) -> RewardBatch:
        seed, count = self._config.seed, self._config.images_per_update
        generator = torch.Generator().manual_seed(step_seed(seed, step, rank))
        chosen = torch.randint(len(self._what), (count,), generator=generator).tolist()
        first = (step * num_ranks + rank) * count
        seeds = [step_seed(seed, first + i, _IMAGE_STREAM) for i in range(count)]
        return RewardBatch([self._what[i] for i in chosen], seeds)  # type: ignore[arg-type]


class RegularizedBatches:
    """Batches for `RegularizedTrainer`: turns are those of `real`."""

    def __init__(self, rewarded: RewardBatches, real: MarvalBatches) -> None:
        self._rewarded = rewarded
        self._real = real

    def __call__(self, step: int, rank: int, num_ranks: int) -> MarvalBatch | RegularizedBatch:
        real = self._real(step, rank, num_ranks)
        if real.turn is Turn.AUXILIARY:
            return real
        return RegularizedBatch(self._rewarded(step, rank, num_ranks), real)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardLoss:
    """Minus the mean reward of what a student generates.

    Attributes:
        reward: frozen.
        to_pixels: None is the student's. One that does not clamp lets gradients reach saturated pixels; a
            student's own may stop them there.
    """

    reward: Reward
    config: RewardConfig
    to_pixels: Pixels | None = None

    def __call__(self, student: Student, batch: RewardBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Metrics: `reward`, and its spread over the images of the batch."""
        paint = student.to_pixels if self.to_pixels is None else self.to_pixels
        images_B3HW = clamp_straight_through(paint(roll_out(student, batch, self.config)).float())
        scores_B = self.reward(images_B3HW, batch.what)
        return -scores_B.mean(), {"reward": scores_B.mean(), "reward_std": scores_B.std(correction=0)}


class RewardTrainer(nn.Module):
    """The student with its reward as `forward`; the reward is neither trained nor saved."""

    def __init__(self, student: Student, reward_loss: RewardLoss) -> None:
        super().__init__()
        self.student = student
        self._reward_loss = Outside(reward_loss)
        keep_frozen_out_of_state(self)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: what is rewarded is what will be generated."""
        return super().train(False)

    def forward(self, batch: RewardBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return self._reward_loss.value(self.student, batch)


class RegularizedTrainer(nn.Module):
    """Reward tuning held to the teacher by `divergence_weight` times the distillation's loss, in turns with
    the auxiliary network.

    Args:
        distillation: its student is the one that is tuned.
    """

    def __init__(self, distillation: MarvalTrainer, reward_loss: RewardLoss) -> None:
        super().__init__()
        self.distillation = distillation
        self._reward_loss = Outside(reward_loss)

    @property
    def student(self) -> Student:
        return self.distillation.student

    def forward(self, batch: MarvalBatch | RegularizedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The auxiliary network's loss on a batch of its own, else reward and divergence together."""
        if isinstance(batch, MarvalBatch):
            return self.distillation(batch)
        loss, metrics = self._reward_loss.value(self.student, batch.rewarded)
        divergence, held = self.distillation(batch.real)
        return loss + self._reward_loss.value.config.divergence_weight * divergence, metrics | held


class RecomputedFeatures:
    """The full model's feature function, computed again in the backward pass instead of kept."""

    name, settings = "backbone", ()

    def __init__(self, model: MaskedGenerator) -> None:
        self._model = model

    def __call__(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        return Features(checkpoint(self._model.features, canvas, condition, use_reentrant=False))


def roll_out(student: Student, batch: RewardBatch, config: RewardConfig) -> Tensor:
    """Finished tokens [B, L, C] that carry the gradients of the last `grad_iterations` steps."""
    canvas = student.blank(len(batch.what))
    noise = SeededNoise(batch.seeds, student.spec.num_tokens, student.device)
    options = SamplingOptions(temperature=config.temperature)
    schedule = student.schedule(config.num_steps, num_masked=canvas.num_masked, options=options)
    fill = partial(decode, student, student.encode(batch.what), noise=noise)
    unmask = student.unmask_rule(canvas, noise)
    first = 0 if config.grad_iterations is None else config.num_steps - config.grad_iterations
    reached = deque([canvas], maxlen=1)
    with torch.no_grad():
        fill(
            schedule[:first],
            canvas=canvas,
            features_fn=FullFeatures(student),
            unmask=unmask,
            on_step=lambda record: reached.append(record.after),
        )
    features_fn = RecomputedFeatures(student)
    return fill(schedule[first:], canvas=reached[0], features_fn=features_fn, unmask=unmask).tokens_BL


def clamp_straight_through(images_B3HW: Tensor) -> Tensor:
    """Images clamped to [0, 1], with gradients as if they were not, so that saturated pixels can return."""
    return images_B3HW + (images_B3HW.clamp(0, 1) - images_B3HW).detach()
