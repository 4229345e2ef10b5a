"""Scoring recorded pictures again: what the policy makes of every token at the step that decided it.

    l_j = log p(y_j | canvas of the step that decided j)

The order in which tokens were decided counts as part of the environment. A step's canvas follows from the
trajectory, so steps are scored one by one, each computed again in the backward pass: what lives through an
update is the activations of one step of a few pictures. Guided probabilities are those that were sampled
from; gradients flow through the conditional branch alone, the null branch is held still.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import Condition, MaskedGenerator
from swiftmask.core.rng import ReplayNoise
from swiftmask.core.tokens import CategoricalTokens
from swiftmask.core.types import Canvas, Features, Record, Step
from swiftmask.core.unmask import as_recorded
from swiftmask.methods.speed_rl.objective import KLEstimator
from swiftmask.methods.speed_rl.rollouts import Replay

StepScores = tuple[Tensor, Tensor, Tensor]
"""Log-probabilities, divergences and entropies of all tokens [B, L], zero where the step decided none."""


def as_drawn(step: Step) -> Step:
    """The probabilities that were sampled from."""
    return step


def conditional_only(step: Step) -> Step:
    """Those of the conditional branch."""
    return replace(step, guidance=1.0)


Reading = Callable[[Step], Step]

POLICY_DISTRIBUTIONS: dict[str, Reading] = {"guided": as_drawn, "conditional": conditional_only}
"""Whose likelihoods the objective compares."""

KL_DISTRIBUTIONS: dict[str, Reading] = {"conditional": conditional_only, "guided": as_drawn}
"""Whose distance to the reference is kept small; without guidance it costs no second branch."""


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
    """What the policy makes of recorded pictures, [B, L] float32.

    Attributes:
        log_prob_BL: carries gradients.
        kl_BL: divergence from the reference where each token was decided; carries gradients.
        entropy_BL: in nats, of the distribution each token was drawn from.
    """

    log_prob_BL: Tensor
    kl_BL: Tensor
    entropy_BL: Tensor


class ConditionalGradients:
    """The full model's features with gradients through the conditional branch alone.

    The null branch comes from a pass of its own: as one batch with the conditional one it would be
    differentiated too. The pass with gradients goes first, since autocast remembers the weights it cast for
    the other one without their history.
    """

    name = "backbone"

    def __init__(self, model: MaskedGenerator, conditional: Condition) -> None:
        self._full = FullFeatures(model)
        self._conditional = conditional

    def __call__(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        features_GBTD = self._full(canvas, self._conditional, step, previous).features_GBTD
        if step.guidance == 1.0:
            return Features(features_GBTD)
        with torch.no_grad():
            held_GBTD = self._full(canvas, condition, step, previous).features_GBTD
        return Features(torch.cat([features_GBTD, held_GBTD[1:]]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """How recorded pictures are scored.

    Attributes:
        reference: what the divergence is from.
        kl: None leaves the divergence at zero and the reference unused.
        policy_reading, kl_reading: which distribution of a step is meant. The divergence can be of the
            guided one only if the policy's is.
        run: keeps the activations of a step, or computes them again.
    """

    policy: MaskedGenerator
    reference: MaskedGenerator
    kl: KLEstimator | None
    policy_reading: Reading
    kl_reading: Reading
    run: Callable[[Callable[[], StepScores]], StepScores]

    def __call__(self, replay: Replay) -> Scores:
        """Errors: ValueError for a head that does not answer with logits over codes."""
        score = self._scoring(replay)
        totals = [torch.zeros_like(replay.trajectory.tokens_BL, dtype=torch.float32) for _ in range(3)]
        for step in replay.schedule:
            parts = self.run(partial(score, step))
            totals = [total_BL + part_BL for total_BL, part_BL in zip(totals, parts, strict=True)]
        return Scores(*totals)

    def _scoring(self, replay: Replay) -> Callable[[Step], StepScores]:
        """What scores one step, with all that the steps share prepared."""
        policy, trajectory = self.policy, replay.trajectory
        conditional = policy.encode(replay.what)
        with torch.no_grad():
            condition = prepare_condition(
                policy, conditional, list(map(self.policy_reading, replay.schedule))
            )
        features_fn = ConditionalGradients(policy, conditional)
        divergence = self._divergence(replay)

        def score(drawn: Step) -> StepScores:
            step, records = self.policy_reading(drawn), []
            decided = decode(
                policy,
                condition,
                [step],
                ReplayNoise([]),  # nothing is drawn
                canvas=trajectory.canvas_at(drawn),
                features_fn=features_fn,
                unmask=as_recorded(trajectory),
                on_step=records.append,
            )
            assert decided.log_prob_BL is not None
            (record,) = records
            entropy_BN = _entropy(policy, record)
            return (
                decided.log_prob_BL,
                _spread(record, divergence(record, drawn)),
                _spread(record, entropy_BN),
            )

        return score

    def _divergence(self, replay: Replay) -> Callable[[Record, Step], Tensor]:
        """`divergence(record, drawn) -> kl_BN` of policy and reference at the tokens of a step."""
        estimate, reference = self.kl, self.reference
        if estimate is None:
            return lambda record, drawn: record.decision.tokens_BN.new_zeros((), dtype=torch.float32).expand(
                record.decision.tokens_BN.shape
            )
        readings = list(map(self.kl_reading, replay.schedule))
        with torch.no_grad():
            condition = prepare_condition(reference, reference.encode(replay.what), readings)

        def divergence(record: Record, drawn: Step) -> Tensor:
            step, positions_BN = self.kl_reading(drawn), record.decision.positions_BN
            with torch.no_grad():
                features = FullFeatures(reference)(record.before, condition, step, None)
                reference_BNV = _log_probs(reference, features, positions_BN, step)
            log_probs_BNV = _log_probs(self.policy, record.features, positions_BN, step)
            return estimate(log_probs_BNV, reference_BNV, record.decision.tokens_BN)

        return divergence


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
