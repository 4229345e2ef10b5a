"""The values that travel through the decode loop.

Shape legend of the package (tensor names end in their axes):

    B image                       G guidance branch (conditional, then null)
    L token position              M position still masked when a step starts
    D width                       N position decided in a step
    V code                        S decode step
    C channel of a continuous token
    T row of a backbone's sequence (image tokens plus class, prompt or newline tokens)
    P prompt                      K sample in a group
    H W pixels

Mask polarity is always True = not decided yet. `guidance = 1.0` means off.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Canvas:
    """Tokens and which of them are still masked.

    Attributes:
        tokens_BL: int64 codes [B, L], or real-valued tokens [B, L, C]. The value at masked positions is the
            model's mask id (or zero) and carries no meaning.
        masked_BL: bool [B, L], True = not decided yet.
        num_masked: how many of every image's tokens are masked; known on the host, so that shapes follow
            without looking at the data.
    """

    tokens_BL: Tensor
    masked_BL: Tensor
    num_masked: int

    @classmethod
    def blank(cls, tokens_BL: Tensor) -> Self:
        """All masked; `tokens_BL` holds what a model writes at masked positions."""
        masked_BL = torch.ones(tokens_BL.shape[:2], dtype=torch.bool, device=tokens_BL.device)
        return cls(tokens_BL, masked_BL, tokens_BL.shape[1])

    def write(self, positions_BN: Tensor, tokens_BN: Tensor) -> Self:
        """The canvas after deciding `positions_BN` [B, N] with `tokens_BN` [B, N] or [B, N, C]."""
        index = positions_BN if tokens_BN.ndim == 2 else positions_BN[..., None].expand_as(tokens_BN)
        return type(self)(
            self.tokens_BL.scatter(1, index, tokens_BN.to(self.tokens_BL.dtype)),
            self.masked_BL.scatter(1, positions_BN, False),
            self.num_masked - positions_BN.shape[1],
        )

    def masked_positions(self) -> Tensor:
        """Positions of the masked tokens of every image, ascending: [B, M]."""
        return self._ordered()[:, : self.num_masked]

    def known_positions(self) -> Tensor:
        """Positions of the decided tokens of every image, ascending: [B, L - M]."""
        return self._ordered()[:, self.num_masked :]

    def _ordered(self) -> Tensor:
        """Masked positions, then known ones, each ascending."""
        return self.masked_BL.to(torch.uint8).argsort(dim=1, descending=True, stable=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoising:
    """How a diffusion head samples a token.

    Attributes:
        num_steps: head calls per token (two branches count as one).
        deterministic: DDIM (arXiv 2010.02502, eta = 0) instead of ancestral sampling.
        noisiest: timestep the chain starts at; None takes the sampler's own.
    """

    num_steps: int
    deterministic: bool = False
    noisiest: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One decode step, known before the loop starts.

    Attributes:
        index: 0-based position in the schedule.
        num_masked_before, num_masked_after: masked tokens per image when the step starts and ends.
        guidance: `null + guidance * (conditional - null)`; 1.0 is off.
        temperature: divides the logits when a token is sampled.
        choice_temperature: scale of the Gumbel noise on the confidence that picks which tokens to keep.
        denoising: how a diffusion head samples; None for heads that answer in one call.
        full: whether the backbone runs; otherwise the feature function approximates it.
    """

    index: int
    num_masked_before: int
    num_masked_after: int
    guidance: float = 1.0
    temperature: float = 1.0
    choice_temperature: float = 0.0
    denoising: Denoising | None = None
    full: bool = True

    @property
    def num_decided(self) -> int:
        return self.num_masked_before - self.num_masked_after


Schedule = Sequence[Step]


@dataclass(frozen=True, slots=True)
class Features:
    """What a feature function returns.

    Attributes:
        features_GBTD: last hidden states after the final norm, one per guidance branch [G, B, T, D].
        carry: whatever the same feature function wants to see again at the next step (older features,
            caches).
    """

    features_GBTD: Tensor
    carry: object = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The tokens one step decided.

    Attributes:
        positions_BN: int64 [B, N].
        tokens_BN: codes [B, N] or real tokens [B, N, C].
        log_prob_BN: float32 log-probability of each token when it was sampled, or None where the head
            cannot score.
    """

    positions_BN: Tensor
    tokens_BN: Tensor
    log_prob_BN: Tensor | None


@dataclass(frozen=True, slots=True)
class Record:
    """Everything about one finished step; handed to `on_step` and to the next step's feature function."""

    step: Step
    before: Canvas
    features: Features
    decision: Decision
    after: Canvas


@dataclass(frozen=True, slots=True)
class Trajectory:
    """An image and when each token was decided: about 2 KB an image, and every canvas follows
    from it.

    Attributes:
        start: the canvas the loop began with.
        tokens_BL: the finished tokens.
        decided_at_BL: int64 [B, L], index of the step that decided each token; -1 where the start canvas
            gave it.
        log_prob_BL: float32 [B, L], 0 where nothing was sampled; None where the head cannot score.
        num_masked: tokens per image that a run which was stopped left masked; in `decided_at_BL` they have
            the index of the step that would have come next.
    """

    start: Canvas
    tokens_BL: Tensor
    decided_at_BL: Tensor
    log_prob_BL: Tensor | None
    num_masked: int = 0

    @property
    def canvas(self) -> Canvas:
        """The canvas as the run left it. One that was stopped goes on with `generate(canvas=...)`."""
        if self.num_masked == 0:
            return Canvas(self.tokens_BL, torch.zeros_like(self.start.masked_BL), 0)
        masked_BL = self.decided_at_BL == self.decided_at_BL.amax()
        return Canvas(self.tokens_BL, masked_BL, self.num_masked)

    def canvas_at(self, step: Step) -> Canvas:
        """The canvas as it stood when `step` began."""
        masked_BL = self.decided_at_BL >= step.index
        where = masked_BL if self.tokens_BL.ndim == 2 else masked_BL[..., None]
        tokens_BL = torch.where(where, self.start.tokens_BL, self.tokens_BL)
        return Canvas(tokens_BL, masked_BL, step.num_masked_before)

    def decided_in(self, step: Step) -> Tensor:
        """Positions decided in `step`, ascending: int64 [B, N]."""
        here_BL = self.decided_at_BL == step.index
        return here_BL.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : step.num_decided]
