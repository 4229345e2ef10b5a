"""Generating the images of a round, and reading their schedule back from what was kept of them.

An image is kept as its tokens and the step that decided each (2 KB), never as features: both its canvases
and its schedule follow from these.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.rng import SeededNoise
from swiftmask.core.types import Schedule, Step, Trajectory
from swiftmask.methods.speed_rl.scorers import What

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
class Rollouts:
    """Generated images: int32 tokens and the step that decided each, [B, L]."""

    tokens_BL: Tensor
    decided_at_BL: Tensor


@torch.no_grad()
def roll_out(
    model: MaskedGenerator,
    what: What,
    seeds: Sequence[int],
    planned: Sequence[int],
    *,
    plan: Plan,
    images_per_forward: int,
) -> Rollouts:
    """Generate one image per entry of `what`, those with the same planned number of steps together."""
    shape = (len(what), model.spec.num_tokens)
    tokens_BL, decided_at_BL = torch.zeros(2, *shape, dtype=torch.int32, device=model.device)
    for num_steps, rows in _together(planned, images_per_forward):
        some_what: Any = [what[i] for i in rows]
        drawn = as_planned(model, some_what, [seeds[i] for i in rows], plan(num_steps))
        tokens_BL[rows] = drawn.tokens_BL.int()
        decided_at_BL[rows] = drawn.decided_at_BL.int()
    return Rollouts(tokens_BL, decided_at_BL)


@dataclass(frozen=True, slots=True)
class Replay:
    """Images that followed one schedule, to be scored again.

    Attributes:
        rows: which images of those asked for they are.
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
    """Images grouped by the schedule they followed, at most `images_per_forward` together."""
    grouped = []
    for num_steps, rows in _together(planned, images_per_forward):
        some_what: Any = [what[i] for i in rows]
        tokens_BL, decided_at_BL = rollouts.tokens_BL[rows].long(), rollouts.decided_at_BL[rows].long()
        trajectory = Trajectory(model.blank(len(rows)), tokens_BL, decided_at_BL, None)
        grouped.append(Replay(tuple(rows), some_what, tuple(plan(num_steps)), trajectory))
    return grouped


def _together(planned: Sequence[int], size: int) -> Iterator[tuple[int, list[int]]]:
    """At most `size` images of one number of steps: the number, and which they are."""
    for num_steps in sorted(set(planned)):
        rows = [row for row, count in enumerate(planned) if count == num_steps]
        yield from ((num_steps, rows[start : start + size]) for start in range(0, len(rows), size))
