"""Distilling a diffusion head into one call: MARVAL's first stage (arXiv 2511.15190), one update at a time.

Real tokens, partly masked, are the context and never a target: the student fills every masked position in
one call, an auxiliary network learns the score of what it generates, and the student learns where that score
and the guided teacher's differ (objective.py). Updates take turns, auxiliary first; a turn is a function of
the step, so a resumed run takes the same ones. Dropout is off. Contexts do not depend on the student's
tokens: gradients reach those through the heads of teacher and auxiliary alone.

What the paper leaves open and what stands here: both networks start as copies of the teacher; timesteps are
uniform, the student's clipped; the distance is taken per token; masks follow MAR's law.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist
from typing import Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from swiftmask.core.protocol import DenoisingModel
from swiftmask.core.ranges import check_fields
from swiftmask.core.tokens import guide
from swiftmask.core.types import Canvas
from swiftmask.methods.marval.objective import TimeWeight, add_noise, denoising_loss, flat, gsim_loss
from swiftmask.methods.marval.student import (
    Student,
    as_module,
    contexts_at,
    copy_of,
    denoised_noise,
    make_student,
)
from swiftmask.training.frozen import Outside, keep_frozen_out_of_state
from swiftmask.training.setup import step_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskLaw:
    """The share of tokens that is masked: a normal distribution truncated to [lowest, highest].

    The defaults are MAR's (arXiv 2406.11838). A decode also visits lower shares, which a smaller `lowest`
    and a larger `std` cover.
    """

    mean: float = 1.0
    std: float = 0.25
    lowest: float = 0.7
    highest: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.lowest >= self.highest:
            raise ValueError(f"lowest must be below highest, got {self.lowest} and {self.highest}")

    def num_masked(self, num_tokens: int, uniform: float) -> int:
        """Masked tokens, at least one, by inverting the distribution at `uniform` in [0, 1)."""
        normal = NormalDist(self.mean, self.std)
        low, high = normal.cdf(self.lowest), normal.cdf(self.highest)
        rate = normal.inv_cdf(low + uniform * (high - low))
        return min(num_tokens, max(1, math.ceil(num_tokens * rate)))


def mask_tokens(tokens_BLC: Tensor, law: MaskLaw, generator: torch.Generator) -> Canvas:
    """Real tokens with one number of positions masked at random in every image.

    Args:
        generator: on the CPU.
    """
    batch, length = tokens_BLC.shape[:2]
    num_masked = law.num_masked(length, torch.rand((), generator=generator).item())
    order_BL = torch.rand(batch, length, generator=generator).argsort(dim=1)
    masked_BL = torch.zeros(batch, length, dtype=torch.bool).scatter(1, order_BL[:, :num_masked], True)
    masked_BL = masked_BL.to(tokens_BLC.device)
    return Canvas(tokens_BLC.masked_fill(masked_BL[..., None], 0.0), masked_BL, num_masked)


_MASK_STREAM = 0x6D61736B
"""Keeps the draws of masks apart from those the training loop makes with the same seed and step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarvalConfig:
    """Settings of the distillation.

    Attributes:
        guidance: of the teacher, constant over timesteps; 1.0 is off.
        timestep: at which the student answers; None is the one with sigma / alpha nearest 2.5.
        first_timestep, last_timestep: range, both ends included, of the noise on the student's tokens in its
            own turn (the auxiliary network sees every timestep).
        second_weight: lambda_2, weight of the second term.
        radius: of the pseudo-Huber distance.
        noisings_per_token: timesteps and noises that each generated token is judged at.
        auxiliary_updates: of the auxiliary network for every one of the student.
    """

    guidance: float = 1.2
    timestep: int | None = None
    first_timestep: int = 20
    last_timestep: int = 980
    second_weight: float = 1.0
    radius: float = 1e-5
    noisings_per_token: int = 1
    auxiliary_updates: int = 1
    mask: MaskLaw = MaskLaw()
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.first_timestep > self.last_timestep:
            raise ValueError(
                "first_timestep must be at most last_timestep, "
                f"got {self.first_timestep} and {self.last_timestep}"
            )


class Turn(Enum):
    """Whose update a step is."""

    AUXILIARY = "auxiliary"
    STUDENT = "student"


@dataclass(frozen=True, slots=True)
class MarvalBatch:
    """Real tokens, partly masked, what they show (labels or prompts), and whose turn it is."""

    turn: Turn
    canvas: Canvas
    what: Sequence[int] | Sequence[str]


CleanTokens = Callable[[int, int, int], tuple[Tensor, Sequence[int] | Sequence[str]]]
"""`clean(step, rank, num_ranks) -> (tokens_BLC, labels or prompts)`, a function of its arguments."""


class MarvalBatches:
    """Batches as a function of the step; all images of one have the same number of masked tokens."""

    def __init__(self, clean: CleanTokens, config: MarvalConfig) -> None:
        self._clean = clean
        self._config = config

    def __call__(self, step: int, rank: int, num_ranks: int) -> MarvalBatch:
        tokens_BLC, what = self._clean(step, rank, num_ranks)
        generator = torch.Generator().manual_seed(step_seed(self._config.seed, step, rank + _MASK_STREAM))
        canvas = mask_tokens(tokens_BLC, self._config.mask, generator)
        return MarvalBatch(turn_of(step, self._config.auxiliary_updates), canvas, what)


def turn_of(step: int, auxiliary_updates: int) -> Turn:
    """The auxiliary network's updates come first, so that the student never follows a stale score."""
    return Turn.AUXILIARY if step % (auxiliary_updates + 1) < auxiliary_updates else Turn.STUDENT


@dataclass(frozen=True, slots=True)
class _Noised:
    """Tokens with noise added, and what was added."""

    noisy_XC: Tensor
    eps_XC: Tensor
    timesteps_X: Tensor
    signal_X: Tensor

    @classmethod
    def draw(cls, tokens_XC: Tensor, signal_T: Tensor, first: int, last: int) -> Self:
        """Timesteps uniform from `first` to `last`, both included."""
        timesteps_X = torch.randint(first, last + 1, (len(tokens_XC),), device=tokens_XC.device)
        eps_XC = torch.randn_like(tokens_XC)
        signal_X = signal_T[timesteps_X]
        return cls(add_noise(tokens_XC, eps_XC, signal_X), eps_XC, timesteps_X, signal_X)


class Auxiliary(nn.Module):
    """A copy of the teacher that learns the score of the student's tokens; `forward` is its head."""

    def __init__(self, model: DenoisingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, noisy_XC: Tensor, timesteps_X: Tensor, context_XD: Tensor) -> Tensor:
        return denoised_noise(self.model, noisy_XC, timesteps_X, context_XD)


class MarvalTrainer(nn.Module):
    """Student and auxiliary network with both their losses; `forward` computes the one whose turn it is.

    Where both share the teacher's backbone (`head_parameters`), it runs once for all three.

    Args:
        teacher: on the device of the training; not trained, not saved, not copied with this module.
        weight: omega(t) of the student's loss.

    Errors: ValueError if the timesteps of `config` are not all the teacher's.
    """

    signal_T: Tensor

    def __init__(
        self,
        teacher: DenoisingModel,
        student: Student,
        auxiliary: Auxiliary,
        config: MarvalConfig,
        *,
        weight: TimeWeight = flat,
    ) -> None:
        super().__init__()
        if config.last_timestep >= len(teacher.signal_T):
            raise ValueError(
                f"last_timestep must be below the {len(teacher.signal_T)} timesteps of {teacher.spec.name}, "
                f"got {config.last_timestep}"
            )
        self.student = student
        self.auxiliary = auxiliary
        self._teacher = Outside(teacher)
        self._config = config
        self._weight = weight
        self._one_backbone = all(_same_backbone(copy, teacher) for copy in (student.model, auxiliary.model))
        self.register_buffer("signal_T", teacher.signal_T.double(), persistent=False)
        keep_frozen_out_of_state(self)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: dropout would blur the scores that are compared."""
        return super().train(False)

    def forward(self, batch: MarvalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of `batch.turn`.

        Metrics: `auxiliary_loss`, or `student_loss` and `score_gap`, the distance between guided teacher and
        auxiliary network (root mean square, in units of the noise).
        """
        return self._auxiliary_turn(batch) if batch.turn is Turn.AUXILIARY else self._student_turn(batch)

    def _auxiliary_turn(self, batch: MarvalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Denoising score matching on what the student generates."""
        with torch.no_grad():
            student_XD = self._contexts(self.student.model, batch)
            tokens_XC = self._draw(student_XD)
        auxiliary_XD = student_XD if self._one_backbone else self._contexts(self.auxiliary.model, batch)
        copies = self._config.noisings_per_token
        noised = _Noised.draw(tokens_XC.repeat(copies, 1), self.signal_T, 0, len(self.signal_T) - 1)
        eps_XC = self.auxiliary(noised.noisy_XC, noised.timesteps_X, auxiliary_XD.repeat(copies, 1))
        loss = denoising_loss(noised.eps_XC, eps_XC)
        return loss, {"auxiliary_loss": loss}

    def _student_turn(self, batch: MarvalBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Guided score implicit matching."""
        with torch.no_grad():
            teacher_GXD = self._teacher_contexts(batch)
            shared_XD = teacher_GXD[0]
            auxiliary_XD = shared_XD if self._one_backbone else self._contexts(self.auxiliary.model, batch)
        student_XD = shared_XD if self._one_backbone else self._contexts(self.student.model, batch)
        config, copies = self._config, self._config.noisings_per_token
        tokens_XC = self._draw(student_XD).repeat(copies, 1)
        noised = _Noised.draw(tokens_XC, self.signal_T, config.first_timestep, config.last_timestep)
        teacher_eps_XC = self._teacher_noise(noised, teacher_GXD.repeat(1, copies, 1))
        auxiliary_eps_XC = self._held_still(noised, auxiliary_XD.repeat(copies, 1))
        loss_X = gsim_loss(
            noised.eps_XC,
            teacher_eps_XC,
            auxiliary_eps_XC,
            noised.signal_X,
            second_weight=config.second_weight,
            radius=config.radius,
        )
        loss = (self._weight(noised.timesteps_X, self.signal_T) * loss_X).mean()
        gap = (teacher_eps_XC - auxiliary_eps_XC).square().mean().sqrt()
        return loss, {"student_loss": loss, "score_gap": gap}

    def _draw(self, context_XD: Tensor) -> Tensor:
        noise_XC = torch.randn(len(context_XD), self._channels, device=context_XD.device)
        return self.student.predict(noise_XC, context_XD)

    @property
    def _channels(self) -> int:
        channels = self.student.spec.channels
        assert channels is not None
        return channels

    def _contexts(self, model: DenoisingModel, batch: MarvalBatch) -> Tensor:
        """What the head of `model` reads at the masked positions: [X, D]."""
        features_GBTD = model.features(batch.canvas, model.encode(batch.what))
        return contexts_at(features_GBTD, batch.canvas.masked_positions())[0]

    def _teacher_contexts(self, batch: MarvalBatch) -> Tensor:
        """Conditional, then null if the teacher is guided: [G, X, D]."""
        teacher = self._teacher.value
        condition = teacher.encode(batch.what)
        if self._config.guidance != 1.0:
            condition = teacher.with_null(condition)
        return contexts_at(teacher.features(batch.canvas, condition), batch.canvas.masked_positions())

    def _teacher_noise(self, noised: _Noised, context_GXD: Tensor) -> Tensor:
        """The guided teacher's noise, both branches in one call."""
        num_branches = len(context_GXD)
        eps_YC = denoised_noise(
            self._teacher.value,
            noised.noisy_XC.repeat(num_branches, 1),
            noised.timesteps_X.repeat(num_branches),
            context_GXD.flatten(0, 1),
        )
        return guide(eps_YC.unflatten(0, (num_branches, -1)), self._config.guidance)

    def _held_still(self, noised: _Noised, context_XD: Tensor) -> Tensor:
        """The auxiliary network's noise with gradients to the noisy tokens but not to its weights."""
        weights = {name: weight.detach() for name, weight in self.auxiliary.named_parameters()}
        inputs = (noised.noisy_XC, noised.timesteps_X, context_XD)
        return functional_call(self.auxiliary, weights, inputs)


def make_trainer(
    teacher: DenoisingModel, own: Sequence[str], config: MarvalConfig, *, weight: TimeWeight = flat
) -> MarvalTrainer:
    """A trainer whose student and auxiliary network both start as the teacher and train `own`."""
    student = make_student(teacher, own, timestep=config.timestep)
    return MarvalTrainer(teacher, student, Auxiliary(copy_of(teacher, own)), config, weight=weight)


def _same_backbone(copied: DenoisingModel, teacher: DenoisingModel) -> bool:
    """Whether all but the head are the teacher's own parameters, so that the contexts are the teacher's."""
    teachers = dict(as_module(teacher).named_parameters())
    head = set(teacher.head_parameters())
    return all(p is teachers[name] for name, p in as_module(copied).named_parameters() if name not in head)
