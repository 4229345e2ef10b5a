"""Drawing the pictures of a round, and reading their schedule back from what was kept of them.

A picture is kept as its tokens and the step that decided each (2 KB), never as features: both its canvases
and its schedule follow from these. With a fixed plan the number of steps is drawn from outside the policy;
decoding by confidence makes it the policy's own doing (Fast-dLLM, arXiv 2505.22618), so that a speed reward
has something to teach.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import Head, MaskedGenerator, Noise
from swiftmask.core.rng import SeededNoise
from swiftmask.core.types import Canvas, Decision, Schedule, Step, Trajectory
from swiftmask.methods.speed_rl.judges import What

Draw = Callable[[MaskedGenerator, What, Sequence[int], Schedule], Trajectory]
"""`draw(model, what, seeds, plan) -> trajectory`."""

Plan = Callable[[int], Schedule]
"""`plan(num_steps)`: the model's own schedule."""


def as_planned(model: MaskedGenerator, what: What, seeds: Sequence[int], plan: Schedule) -> Trajectory:
    """The model's own decode: counts, and with them the number of steps, are the plan's."""
    canvas = model.blank(len(what))
    noise = SeededNoise(seeds, model.spec.num_tokens, model.device)
    return decode(
        model,
        prepare_condition(model, model.encode(what), plan),
        plan,
        noise,
        canvas=canvas,
        features_fn=FullFeatures(model),
        unmask=model.unmask_rule(canvas, noise),
    )


@dataclass(frozen=True, slots=True)
class AsConfident:
    """Decides every token whose probability reaches `threshold`, at least `fewest` and at most `most` a
    step, until none is left.

    A picture's counts depend on its tokens, so each is decoded by itself. Guidance and whatever else
    depends on the step is the plan's at the step with the nearest number of masked tokens.
    """

    threshold: float
    fewest: int
    most: int

    def __call__(
        self, model: MaskedGenerator, what: What, seeds: Sequence[int], plan: Schedule
    ) -> Trajectory:
        one_each: list[Any] = [[entry] for entry in what]
        drawn = [self._one(model, one, seed, plan) for one, seed in zip(one_each, seeds, strict=True)]
        return Trajectory(
            model.blank(len(drawn)),
            torch.cat([trajectory.tokens_BL for trajectory in drawn]),
            torch.cat([trajectory.decided_at_BL for trajectory in drawn]),
            None,
        )

    def _one(self, model: MaskedGenerator, what: What, seed: int, plan: Schedule) -> Trajectory:
        noise = SeededNoise([seed], model.spec.num_tokens, model.device)
        condition = prepare_condition(model, model.encode(what), plan)
        start = model.blank(1)
        decided_at_BL = torch.full_like(start.tokens_BL, -1)
        reached, index = deque([start], maxlen=1), 0
        while reached[0].num_masked:
            step = _step_at(plan, index, reached[0].num_masked, reached[0].num_masked)
            decided = decode(
                model,
                condition,
                [step],
                noise,
                canvas=reached[0],
                features_fn=FullFeatures(model),
                unmask=self._decide,
                on_step=lambda record: reached.append(record.after),
            )
            decided_at_BL = torch.maximum(decided_at_BL, decided.decided_at_BL)
            index += 1
        return Trajectory(start, reached[0].tokens_BL, decided_at_BL, None)

    def _decide(self, head: Head, canvas: Canvas, step: Step, noise: Noise) -> Decision:
        positions_BM = canvas.masked_positions()
        tokens_BM, log_prob_BM = head(positions_BM).sample(noise, step)
        assert log_prob_BM is not None
        num_sure = int((log_prob_BM.exp() >= self.threshold).sum())
        num_decided = min(max(num_sure, self.fewest), self.most, canvas.num_masked)
        kept_BN = log_prob_BM.topk(num_decided, dim=1).indices.sort(dim=1).values
        return Decision(
            positions_BM.gather(1, kept_BN), tokens_BM.gather(1, kept_BN), log_prob_BM.gather(1, kept_BN)
        )


def followed(plan: Schedule, counts: Sequence[int]) -> tuple[Step, ...]:
    """The schedule of a picture that decided so many tokens at each step.

    A picture drawn `as_planned` gets its plan back, step for step.
    """
    left, steps = sum(counts), []
    for index, count in enumerate(counts):
        steps.append(_step_at(plan, index, left, count))
        left -= count
    return tuple(steps)


def _step_at(plan: Schedule, index: int, num_masked: int, num_decided: int) -> Step:
    nearest = min(plan, key=lambda step: abs(step.num_masked_before - num_masked))
    return replace(
        nearest,
        index=index,
        num_masked_before=num_masked,
        num_masked_after=num_masked - num_decided,
    )


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Drawn pictures: int32 tokens and the step that decided each, [B, L]."""

    tokens_BL: Tensor
    decided_at_BL: Tensor


@torch.no_grad()
def roll_out(
    model: MaskedGenerator,
    what: What,
    seeds: Sequence[int],
    planned: Sequence[int],
    *,
    draw: Draw,
    plan: Plan,
    images_per_forward: int,
) -> Rollouts:
    """Draw one picture per entry of `what`, those with the same planned number of steps together."""
    shape = (len(what), model.spec.num_tokens)
    tokens_BL, decided_at_BL = torch.zeros(2, *shape, dtype=torch.int32, device=model.device)
    for num_steps in sorted(set(planned)):
        alike = [i for i, count in enumerate(planned) if count == num_steps]
        for rows in _chunks(alike, images_per_forward):
            some_what: Any = [what[i] for i in rows]
            drawn = draw(model, some_what, [seeds[i] for i in rows], plan(num_steps))
            tokens_BL[rows] = drawn.tokens_BL.int()
            decided_at_BL[rows] = drawn.decided_at_BL.int()
    return Rollouts(tokens_BL, decided_at_BL)


@dataclass(frozen=True, slots=True)
class Replay:
    """Pictures that followed one schedule, to be scored again.

    Attributes:
        rows: which pictures of those asked for they are.
    """

    rows: tuple[int, ...]
    what: What
    schedule: tuple[Step, ...]
    trajectory: Trajectory


def replays(
    model: MaskedGenerator,
    rollouts: Rollouts,
    what: What,
    planned: Sequence[int],
    *,
    plan: Plan,
    images_per_forward: int,
) -> list[Replay]:
    """Pictures grouped by the schedule they followed, at most `images_per_forward` together."""
    counts = [tuple(torch.bincount(row).tolist()) for row in rollouts.decided_at_BL.cpu()]
    alike: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for row, key in enumerate(zip(planned, counts, strict=True)):
        alike.setdefault(key, []).append(row)
    grouped = []
    for (num_steps, decided), members in sorted(alike.items()):
        schedule = followed(plan(num_steps), decided)
        for rows in _chunks(members, images_per_forward):
            some_what: Any = [what[i] for i in rows]
            trajectory = Trajectory(
                model.blank(len(rows)),
                rollouts.tokens_BL[rows].long(),
                rollouts.decided_at_BL[rows].long(),
                None,
            )
            grouped.append(Replay(tuple(rows), some_what, schedule, trajectory))
    return grouped


def _chunks(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
