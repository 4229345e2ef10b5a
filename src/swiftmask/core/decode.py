"""The one decode loop of the package.

Three seams: the schedule (data), the feature function (backbone or an approximation of it) and the token
head (the model's, reached through `head(positions)`). Shapes of every step follow from the schedule,
nothing is read back from the device, and no line loops over images; so the loop also runs on the meta
device, which is how its cost is counted and how the absence of host synchronisation is tested.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from swiftmask.core.protocol import (
    Condition,
    FeatureFn,
    MaskedGenerator,
    Noise,
    PlannedCondition,
    UnmaskRule,
)
from swiftmask.core.types import Canvas, Decision, Features, Record, Schedule, Step, Trajectory


class FullFeatures:
    """The feature function of the unaccelerated model: every step runs the backbone."""

    name, settings = "backbone", ()

    def __init__(self, model: MaskedGenerator) -> None:
        self._model = model

    def __call__(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        return Features(self._model.features(canvas, condition))


def decode(
    model: MaskedGenerator,
    condition: Condition,
    schedule: Schedule,
    noise: Noise,
    *,
    canvas: Canvas,
    features_fn: FeatureFn,
    unmask: UnmaskRule,
    on_step: Callable[[Record], Schedule | None] | None = None,
) -> Trajectory:
    """Fill `canvas` step by step.

    Args:
        condition: with the null branch beside it if any step is guided (`prepare_condition`).
        schedule: its first step's `num_masked_before` must be the number of masked tokens of every image.
        unmask: the rule that decides positions and tokens (unmask.py).
        on_step: called with the record of every finished step. A schedule that it returns takes the place of
            the steps to come, which must decide as many tokens each; an empty one ends the decode.

    Gradients flow if the caller leaves them enabled.
    """
    start = canvas
    decided_at_BL = torch.full_like(canvas.masked_BL, -1, dtype=torch.int64)
    log_prob_BL = torch.zeros_like(canvas.masked_BL, dtype=torch.float32)
    scored, previous, to_come = True, None, list(schedule)
    while to_come:
        step = to_come.pop(0)
        features = features_fn(canvas, condition, step, previous)
        decision = unmask(_head(model, features, step), canvas, step, noise)
        previous = Record(step, canvas, features, decision, _write(canvas, decision))
        canvas = previous.after
        decided_at_BL = decided_at_BL.scatter(1, decision.positions_BN, step.index)
        if decision.log_prob_BN is None:
            scored = False
        else:
            log_prob_BL = log_prob_BL.scatter(1, decision.positions_BN, decision.log_prob_BN.float())
        if on_step is not None and (changed := on_step(previous)) is not None:
            to_come = list(changed)
    if previous is not None and canvas.num_masked:
        decided_at_BL = decided_at_BL.masked_fill(canvas.masked_BL, previous.step.index + 1)
    log_prob_BL = log_prob_BL if scored else None
    return Trajectory(start, canvas.tokens_BL, decided_at_BL, log_prob_BL, canvas.num_masked)


def check_finite(trajectory: Trajectory, images_B3HW: Tensor, dtype: torch.dtype) -> None:
    """Errors: FloatingPointError if a decode met numbers that are not finite; images of it mean nothing.

    A token sampled from NaN has a NaN log-probability, or is NaN itself, and the trajectory keeps it to the
    end: one value is read back from the device, after the last step.
    """
    values = [trajectory.tokens_BL, images_B3HW]
    if trajectory.log_prob_BL is not None:
        values.append(trajectory.log_prob_BL)
    if torch.stack([value.isfinite().all() for value in values]).all():
        return
    name = str(dtype).removeprefix("torch.")
    mend = "the weights are damaged (NaN, infinite or far too large): fetch or train them again"
    if dtype != torch.float32:
        wider = "float32" if dtype == torch.bfloat16 else "bfloat16 or float32"
        mend = f"{name} overflows in this model: take dtype={wider}; if that fails too, {mend}"
    raise FloatingPointError(f"expected finite numbers, got NaN or infinity in a decode in {name}: {mend}")


def prepare_condition(model: MaskedGenerator, condition: Condition, schedule: Schedule) -> Condition:
    """Tells the condition the schedule where it asks for it, and adds the null branch when any step is
    guided, so that both run in one forward throughout.
    """
    if isinstance(condition, PlannedCondition):
        condition = condition.along(schedule)
    return model.with_null(condition) if is_guided(schedule) else condition


def is_guided(schedule: Schedule) -> bool:
    """Whether a decode of this schedule needs the null branch."""
    return any(step.guidance != 1.0 for step in schedule)


def _head(model: MaskedGenerator, features: Features, step: Step):
    return lambda positions_BM: model.tokens(features.features_GBTD, positions_BM, step.guidance)


def _write(canvas: Canvas, decision: Decision) -> Canvas:
    return canvas.write(decision.positions_BN, decision.tokens_BN)
