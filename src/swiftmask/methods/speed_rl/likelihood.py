"""Scoring recorded images again: what the policy makes of every token at the step that decided it.

    l_j = log p(y_j | canvas of the step that decided j)

The order in which tokens were decided counts as part of the environment. A step's canvas follows from the
trajectory, so steps are scored one by one, each computed again in the backward pass: what lives through an
update is the activations of one step of a few images. Guided probabilities are those that were sampled
from; gradients flow through the conditional branch alone. The policy's null branch and the reference run
once per step, without gradients: their features at the tokens of the step are kept for the backward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from swiftmask.core.decode import decode, prepare_condition
from swiftmask.core.protocol import Condition, MaskedGenerator, ScoringModel
from swiftmask.core.rng import ReplayNoise
from swiftmask.core.tokens import CategoricalTokens, feature_rows, gather_rows
from swiftmask.core.types import Canvas, Features, Record, Step
from swiftmask.core.unmask import as_recorded
from swiftmask.methods.speed_rl.objective import KLEstimator
from swiftmask.methods.speed_rl.rollouts import Replay

StepScores = tuple[Tensor, Tensor, Tensor]
"""Log-probabilities, divergences and entropies of all tokens [B, L], zero where the step decided none."""


def recomputed(score: Callable[[], StepScores]) -> StepScores:
    """Keeps nothing of a step, and computes it again in the backward pass."""
    return checkpoint(score, use_reentrant=False)


def kept(score: Callable[[], StepScores]) -> StepScores:
    """Keeps the activations of all steps: a third cheaper where they fit."""
    return score()


ACTIVATIONS: dict[str, Callable[[Callable[[], StepScores]], StepScores]] = {
    "recomputed": recomputed,
    "kept": kept,
}


@dataclass(frozen=True, slots=True)
class Scores:
    """What the policy makes of recorded images, [B, L] float32.

    Attributes:
        log_prob_BL: carries gradients.
        kl_BL: divergence from the reference where each token was decided; carries gradients.
        entropy_BL: in nats, of the distribution each token was drawn from.
    """

    log_prob_BL: Tensor
    kl_BL: Tensor
    entropy_BL: Tensor


@dataclass(frozen=True, slots=True)
class _Held:
    """What one step needs without gradients: features [G, B, N, D] at the N tokens it decided.

    Attributes:
        null_1BND: of the policy's null branch; None where the step is not guided.
        reference_GBND: of the reference; None without a divergence.
    """

    null_1BND: Tensor | None
    reference_GBND: Tensor | None


class _WithNull:
    """The conditional branch's features, and beside them the null branch as it was held."""

    name, settings = "backbone", ()

    def __init__(self, model: ScoringModel, positions_BN: Tensor, null_1BND: Tensor | None) -> None:
        self._model = model
        self._positions_BN = positions_BN
        self._null_1BND = null_1BND

    def __call__(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        features_1BTD = self._model.features(canvas, condition)
        if self._null_1BND is None:
            return Features(features_1BTD)
        num_rows = features_1BTD.shape[2]
        null_1BTD = _placed(self._model, self._null_1BND, self._positions_BN, num_rows)
        return Features(torch.cat([features_1BTD, null_1BTD]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """How recorded images are scored.

    Attributes:
        reference: what the divergence is from.
        kl: None leaves the divergence at zero and the reference unused.
        run: keeps the activations of a step, or computes them again.
    """

    policy: ScoringModel
    reference: MaskedGenerator
    kl: KLEstimator | None
    run: Callable[[Callable[[], StepScores]], StepScores]

    def __call__(self, replay: Replay) -> Scores:
        """Errors: ValueError for a head that does not answer with logits over codes."""
        conditional = _planned(self.policy, replay, list(map(_unguided, replay.schedule)))
        totals = [torch.zeros_like(replay.trajectory.tokens_BL, dtype=torch.float32) for _ in range(3)]
        for step, held in zip(replay.schedule, self._held(replay, conditional), strict=True):
            parts = self.run(partial(self._score, replay, conditional, step, held))
            totals = [total_BL + part_BL for total_BL, part_BL in zip(totals, parts, strict=True)]
        return Scores(*totals)

    @torch.no_grad()
    def _held(self, replay: Replay, conditional: Condition) -> list[_Held]:
        """Of every step."""
        null = self.policy.null(conditional)
        unguided = list(map(_unguided, replay.schedule))
        condition = _planned(self.reference, replay, unguided) if self.kl is not None else None
        held = []
        for drawn in replay.schedule:
            canvas, positions_BN = replay.trajectory.canvas_at(drawn), replay.trajectory.decided_in(drawn)
            held.append(
                _Held(
                    _features_at(self.policy, canvas, null, positions_BN) if drawn.guidance != 1.0 else None,
                    None
                    if condition is None
                    else _features_at(self.reference, canvas, condition, positions_BN),
                )
            )
        # Autocast remembers the weights it cast here, without their history.
        torch.clear_autocast_cache()
        return held

    def _score(self, replay: Replay, conditional: Condition, drawn: Step, held: _Held) -> StepScores:
        """One step, with gradients."""
        policy, trajectory = self.policy, replay.trajectory
        records: list[Record] = []
        decided = decode(
            policy,
            conditional,
            [drawn],
            ReplayNoise([]),  # nothing is drawn
            canvas=trajectory.canvas_at(drawn),
            features_fn=_WithNull(policy, trajectory.decided_in(drawn), held.null_1BND),
            unmask=as_recorded(trajectory),
            on_step=records.append,
        )
        assert decided.log_prob_BL is not None
        (record,) = records
        kl_BN, entropy_BN = self._divergence(record, drawn, held), _entropy(policy, record)
        return decided.log_prob_BL, _spread(record, kl_BN), _spread(record, entropy_BN)

    def _divergence(self, record: Record, drawn: Step, held: _Held) -> Tensor:
        """Of policy and reference at the tokens of a step: [B, N]."""
        tokens_BN, positions_BN = record.decision.tokens_BN, record.decision.positions_BN
        if self.kl is None or held.reference_GBND is None:
            return torch.zeros_like(tokens_BN, dtype=torch.float32)
        step, num_rows = _unguided(drawn), record.features.features_GBTD.shape[2]
        with torch.no_grad():
            placed_GBTD = _placed(self.reference, held.reference_GBND, positions_BN, num_rows)
            reference_BNV = _log_probs(self.reference, Features(placed_GBTD), positions_BN, step)
        log_probs_BNV = _log_probs(self.policy, record.features, positions_BN, step)
        return self.kl(log_probs_BNV, reference_BNV, tokens_BN)


def _unguided(step: Step) -> Step:
    """The conditional branch's, whose distance to the reference is kept small: it costs no second branch."""
    return replace(step, guidance=1.0)


def _planned(model: MaskedGenerator, replay: Replay, schedule: Sequence[Step]) -> Condition:
    """What was asked for, in a decode of this schedule."""
    return prepare_condition(model, model.encode(replay.what), list(schedule))


def _features_at(
    model: MaskedGenerator, canvas: Canvas, condition: Condition, positions_BN: Tensor
) -> Tensor:
    """Features at some canvas positions: [G, B, N, D]."""
    features_GBTD = model.features(canvas, condition)
    return gather_rows(features_GBTD, feature_rows(model, positions_BN, features_GBTD.shape[2]))


def _placed(model: MaskedGenerator, held_GBND: Tensor, positions_BN: Tensor, num_rows: int) -> Tensor:
    """Features where the head looks for those of `positions_BN`: [G, B, T, D], zero elsewhere."""
    num_branches, batch, _, width = held_GBND.shape
    rows_BN = feature_rows(model, positions_BN, num_rows)
    index_GBND = rows_BN[None, :, :, None].expand_as(held_GBND)
    return held_GBND.new_zeros(num_branches, batch, num_rows, width).scatter(2, index_GBND, held_GBND)


def _spread(record: Record, values_BN: Tensor) -> Tensor:
    """Values of a step's tokens at their places on the canvas: [B, L], zero elsewhere."""
    zeros_BL = torch.zeros_like(record.before.tokens_BL, dtype=torch.float32)
    return zeros_BL.scatter(1, record.decision.positions_BN, values_BN)


@torch.no_grad()
def _entropy(model: MaskedGenerator, record: Record) -> Tensor:
    """Of the distributions the tokens of a step were drawn from: [B, N]."""
    step = record.step
    return _codes(model, record.features, record.decision.positions_BN, step).entropy(step.temperature)


def _log_probs(model: MaskedGenerator, features: Features, positions_BN: Tensor, step: Step) -> Tensor:
    codes = _codes(model, features, positions_BN, step)
    return (codes.logits_BMV / step.temperature).log_softmax(-1)


def _codes(model: MaskedGenerator, features: Features, positions_BN: Tensor, step: Step) -> CategoricalTokens:
    distribution = model.tokens(features.features_GBTD, positions_BN, step.guidance)
    if not isinstance(distribution, CategoricalTokens):
        raise ValueError(
            f"speed_rl needs categorical tokens, {model.spec.name} answers with {type(distribution).__name__}"
        )
    return replace(distribution, logits_BMV=distribution.logits_BMV.float())  # also under autocast
