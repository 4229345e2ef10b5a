"""One update of Speed-RL (arXiv 2512.01094): GRPO on the recorded images of a round.

What the published part of the paper leaves open and what stands here: section by section in objective.py,
rewards.py and filtering.py. Not implemented: the likelihood of the order in which tokens are
decided, a learned head for the number of steps, and synchronising the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from swiftmask.core.protocol import MaskedGenerator
from swiftmask.methods.speed_rl.config import SpeedRLConfig
from swiftmask.methods.speed_rl.filtering import Filter
from swiftmask.methods.speed_rl.likelihood import ACTIVATIONS, Scorer, Scores
from swiftmask.methods.speed_rl.objective import (
    IMPORTANCE_SAMPLING_LEVELS,
    KLEstimator,
    Surrogate,
    clipped_surrogate,
)
from swiftmask.methods.speed_rl.policy import make_policy
from swiftmask.methods.speed_rl.rollouts import Replay
from swiftmask.training.frozen import Outside, keep_frozen_out_of_state
from swiftmask.training.setup import Metrics


@dataclass(frozen=True, slots=True)
class Lesson:
    """Recorded images of one schedule and what to learn from them.

    Attributes:
        old_log_prob_BL: of the policy that drew them; None where the policy still is that one.
        weights_B: share of each image in the loss; those of all processes together average to the
            share of one.
    """

    replay: Replay
    old_log_prob_BL: Tensor | None
    advantages_B: Tensor
    weights_B: Tensor


@dataclass(frozen=True, slots=True)
class SpeedRLBatch:
    """The lessons of one update of one process, and metrics of the round they are from."""

    lessons: Sequence[Lesson]
    metrics: Metrics


class Round(nn.Module):
    """The images that are being learned from. Part of the checkpoint: their policy is gone by then."""

    tokens_BL: Tensor
    decided_at_BL: Tensor
    old_log_prob_BL: Tensor
    advantages_B: Tensor
    kept_B: Tensor

    def __init__(self, num_images: int, num_tokens: int) -> None:
        super().__init__()
        shape = (num_images, num_tokens)
        # int32: buffers are broadcast between processes, and gloo has no int16
        self.register_buffer("tokens_BL", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("decided_at_BL", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("old_log_prob_BL", torch.zeros(shape))
        self.register_buffer("advantages_B", torch.zeros(num_images))
        self.register_buffer("kept_B", torch.zeros(num_images))


class SpeedRLTrainer(nn.Module):
    """The policy with its objective as `forward`, and all that a resumed run needs to go on exactly.

    Args:
        base: on the device of the training; frozen, not saved, the reference of the divergence. The policy
            shares its memory but for what is trained.

    Errors: ValueError for a base that cannot score tokens, or a config without step counts.
    """

    def __init__(self, base: MaskedGenerator, config: SpeedRLConfig) -> None:
        super().__init__()
        if not config.step_counts:
            raise ValueError("step_counts must hold at least one number of decode steps, got none")
        self.config = config
        self.policy = make_policy(base, config.tuning)
        self.round = Round(config.generation_batch_size, base.spec.num_tokens)
        self.filter = Filter(config.filter, config.num_generations)
        self._base = Outside(base)
        keep_frozen_out_of_state(self)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: what is scored is what was generated."""
        return super().train(False)

    def scorer(self, kl: KLEstimator | None) -> Scorer:
        """Scores recorded images under the policy as it is now."""
        config = self.config
        return Scorer(
            policy=self.policy,
            reference=self._base.value,
            kl=kl,
            run=ACTIVATIONS[config.activations],
        )

    def forward(self, batch: SpeedRLBatch) -> tuple[Tensor, Metrics]:
        """The weighted objective of a batch.

        Metrics: those of the round, `policy_loss`, `kl`, `entropy` and `entropy/step_K`, `ratio/mean` and
        `ratio/max`, `clip_ratio/...` as TRL has them, `num_tokens`.
        """
        scorer = self.scorer(self.config.kl)
        outcomes = [self._learn(scorer, lesson) for lesson in batch.lessons]
        loss = torch.stack([outcome.loss for outcome in outcomes]).sum()
        return loss, batch.metrics | _metrics(outcomes)

    def _learn(self, scorer: Scorer, lesson: Lesson) -> "_Outcome":
        config, scores = self.config, scorer(lesson.replay)
        old_BL = scores.log_prob_BL.detach() if lesson.old_log_prob_BL is None else lesson.old_log_prob_BL
        level = IMPORTANCE_SAMPLING_LEVELS[config.importance_sampling_level]
        surrogate = clipped_surrogate(
            level(scores.log_prob_BL - old_BL),
            lesson.advantages_B,
            epsilon=config.epsilon,
            epsilon_high=config.epsilon_high,
        )
        loss_B = surrogate.loss_B + config.beta * scores.kl_BL.mean(dim=1)
        return _Outcome(
            (lesson.weights_B * loss_B).sum(), surrogate, scores, lesson.replay.trajectory.decided_at_BL
        )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one lesson."""

    loss: Tensor
    surrogate: Surrogate
    scores: Scores
    decided_at_BL: Tensor


@torch.no_grad()
def _metrics(outcomes: Sequence[_Outcome]) -> Metrics:
    surrogates = [outcome.surrogate for outcome in outcomes]
    low_B = torch.cat([surrogate.low_BL.float().mean(1) for surrogate in surrogates])
    high_B = torch.cat([surrogate.high_BL.float().mean(1) for surrogate in surrogates])
    ratio_BL = torch.cat([surrogate.ratio_BL for surrogate in surrogates])
    return {
        "policy_loss": torch.cat([surrogate.loss_B for surrogate in surrogates]).mean(),
        "kl": torch.cat([outcome.scores.kl_BL for outcome in outcomes]).mean(),
        "ratio/mean": ratio_BL.mean(),
        "ratio/max": ratio_BL.max(),
        "clip_ratio/low_mean": low_B.mean(),
        "clip_ratio/low_min": low_B.min(),
        "clip_ratio/high_mean": high_B.mean(),
        "clip_ratio/high_max": high_B.max(),
        "clip_ratio/region_mean": (low_B + high_B).mean(),
        "num_tokens": torch.tensor(float(ratio_BL.numel())),
    } | _entropies(outcomes)


def _entropies(outcomes: Sequence[_Outcome]) -> Metrics:
    """Of all tokens, and of those decided at each step."""
    entropy_BL = torch.cat([outcome.scores.entropy_BL for outcome in outcomes])
    decided_at_BL = torch.cat([outcome.decided_at_BL for outcome in outcomes])
    by_step = {
        f"entropy/step_{step}": entropy_BL[decided_at_BL == step].mean()
        for step in range(int(decided_at_BL.max()) + 1)
    }
    return {"entropy": entropy_BL.mean()} | by_step
