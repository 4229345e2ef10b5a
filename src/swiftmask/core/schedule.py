"""Schedules are data: how many tokens each step decides, with which guidance and noise, and which are full.

One function per upstream dialect, all returning `list[Step]`. Counts are Python integers, so the shapes of
every step are known before the loop starts. Upstream facts: valeoai MaskGIT v1.0 (arXiv 2202.04200
re-implementation), MAR (arXiv 2406.11838), Meissonic (arXiv 2410.08261), Lumina-DiMOO (arXiv 2510.06308).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from swiftmask.core.types import Denoising, Step

Curve = Callable[[Tensor], Tensor]

GuidanceCurve = Callable[[float, float], float]
"""The guidance of a step, from the one asked for and the share of the canvas decided after the step."""


def arccos(remaining: Tensor) -> Tensor:
    """valeoai's default: few tokens first, ever more later."""
    return remaining.arccos() / (math.pi / 2)


def valeo_reveal_counts(
    num_masked: int, num_steps: int, curve: Curve = arccos, power: float = 1.0
) -> list[int]:
    """Tokens decided per step, valeoai v1.0: the curve itself, not its differences, gives the increments.

    Each count is rounded half-to-even, at least 1 (so step 0 decides one token), and the last step takes
    the rest. A `power` other than 1 is of the share still masked after each step.
    """
    _check_steps(num_masked, num_steps)
    increments = curve(torch.linspace(1, 0, num_steps))
    if num_steps == 1:
        return [num_masked]
    counts = [max(1, int(n)) for n in (increments / increments.sum() * num_masked).round()]
    counts[-1] += num_masked - sum(counts)
    while counts[-1] < 1:  # only with nearly as many steps as tokens
        counts[counts.index(max(counts))] -= 1
        counts[-1] += 1
    if power == 1.0:
        return counts
    left = _left_after(num_masked, counts)
    powered = _in_reach([num_masked * (n / num_masked) ** power for n in left], num_masked)
    return [before - after for before, after in pairwise([num_masked, *powered])]


def valeo_schedule(
    num_masked: int,
    num_steps: int,
    *,
    curve: Curve = arccos,
    guidance: float = 1.0,
    temperature: float = 1.0,
    choice_temperature: float = 0.0,
    schedule_power: float = 1.0,
) -> list[Step]:
    """valeoai MaskGIT v1.0: guidance rises linearly from off to `guidance`, choice noise falls linearly to
    zero.

    `guidance` is `1 + w` of the reference; `temperature` is the inverse of its `sm_temp`.
    """
    counts = valeo_reveal_counts(num_masked, num_steps, curve, schedule_power)
    progress = [i / (num_steps - 1) if num_steps > 1 else 1.0 for i in range(num_steps)]
    left = _left_after(num_masked, counts)
    return [
        Step(
            index=i,
            num_masked_before=left[i] + counts[i],
            num_masked_after=left[i],
            guidance=1 + (guidance - 1) * progress[i],
            temperature=temperature,
            choice_temperature=choice_temperature * (1 - progress[i]),
        )
        for i in range(num_steps)
    ]


def cosine_left(num_masked: int, num_steps: int, dtype: torch.dtype, power: float = 1.0) -> list[int]:
    """Masked tokens after each step, `floor(n cos(pi/2 (i+1)/N) ** power)` held in [1, left - 1], zero at the
    end.

    The precision matters: cos(pi/3) in float32 floors 512 to 511, which hits every N divisible by 3.
    """
    _check_steps(num_masked, num_steps)
    ratios = torch.arange(1, num_steps + 1, dtype=dtype) / num_steps
    share = torch.cos(ratios * math.pi / 2)
    # The last cosine is not quite zero, and may be below it: a power would make it NaN.
    return _in_reach(
        (num_masked * (share if power == 1.0 else share.clamp(min=0) ** power)).tolist(), num_masked
    )


def rising_guidance(guidance: float, decided: float) -> float:
    """MAR's "linear": from off to `guidance` with the share of the canvas that is decided."""
    return 1 + (guidance - 1) * decided


def constant_guidance(guidance: float, decided: float) -> float:
    """MAR's "constant"."""
    return guidance


def mar_schedule(
    num_masked: int,
    num_steps: int,
    *,
    guidance: float = 1.0,
    temperature: float = 1.0,
    guidance_curve: GuidanceCurve = rising_guidance,
    schedule_power: float = 1.0,
) -> list[Step]:
    """MAR: cosine in float64; the guidance of a step follows the share of tokens decided after it, which
    upstream never lets reach 1 (so rising guidance never quite arrives).
    """
    left = cosine_left(num_masked, num_steps, torch.float64, schedule_power)
    scales = [guidance_curve(guidance, (num_masked - max(1, after)) / num_masked) for after in left]
    return _steps(num_masked, left, scales, [0.0] * num_steps, temperature)


def with_denoising(
    schedule: Sequence[Step],
    num_denoising: int | tuple[int, int],
    *,
    deterministic: bool = False,
    noisiest: int | None = None,
) -> list[Step]:
    """The schedule with a diffusion head that takes so many steps per token.

    Args:
        num_denoising: at every step; or (first, last), annealed linearly over the decode and rounded (DiSA,
            arXiv 2505.20297).

    Errors: ValueError for less than one.
    """
    first, last = (num_denoising, num_denoising) if isinstance(num_denoising, int) else num_denoising
    if min(first, last) < 1:
        raise ValueError(f"denoising steps must be at least 1, got {num_denoising}")
    intervals = max(1, len(schedule) - 1)
    return [
        replace(
            step,
            denoising=Denoising(
                num_steps=round(first + (last - first) * place / intervals),
                deterministic=deterministic,
                noisiest=noisiest,
            ),
        )
        for place, step in enumerate(schedule)
    ]


def meissonic_schedule(
    num_masked: int,
    num_steps: int,
    *,
    guidance: float = 9.0,
    temperature: float = 1.0,
    choice_temperature: float = 2.0,
    schedule_power: float = 1.0,
) -> list[Step]:
    """Meissonic: cosine in float32, constant guidance, choice noise falling linearly to zero."""
    noise = torch.linspace(choice_temperature, 0, num_steps).tolist()
    left = cosine_left(num_masked, num_steps, torch.float32, schedule_power)
    return _steps(num_masked, left, [guidance] * num_steps, noise, temperature)


def dimoo_schedule(
    num_masked: int,
    num_steps: int,
    *,
    guidance: float = 5.0,
    temperature: float = 1.0,
    choice_temperature: float = 1.0,
    schedule_power: float = 1.0,
) -> list[Step]:
    """Lumina-DiMOO: cosine in float32, constant guidance (`1 + s`) and constant choice noise."""
    noise = [choice_temperature] * num_steps
    left = cosine_left(num_masked, num_steps, torch.float32, schedule_power)
    return _steps(num_masked, left, [guidance] * num_steps, noise, temperature)


def uniform_full_steps(num_steps: int, num_full: int) -> list[int]:
    """MIGM-Shortcut's placement of full steps: 0, then `max(previous + 1, round(N k / B))` (banker's
    rounding).

    Errors: ValueError unless 1 <= num_full <= num_steps.
    """
    if not 1 <= num_full <= num_steps:
        raise ValueError(
            f"full steps must be between 1 and the number of steps ({num_steps}), got {num_full}"
        )
    placed = [0]
    for k in range(1, num_full):
        placed.append(max(placed[-1] + 1, round(num_steps * k / num_full)))
    return placed


def with_full_steps(schedule: Sequence[Step], full: Iterable[int]) -> list[Step]:
    """The schedule with exactly the steps `full` running the backbone.

    Errors: ValueError if step 0 is missing (there are no features yet) or an index is outside the schedule.
    """
    indices = set(full)
    outside = sorted(indices - set(range(len(schedule))))
    if outside or 0 not in indices:
        raise ValueError(
            f"full steps must contain step 0 and lie in 0..{len(schedule) - 1}, got {sorted(indices)}"
        )
    return [replace(step, full=step.index in indices) for step in schedule]


def _steps(
    num_masked: int,
    left: Sequence[int],
    guidance: Sequence[float],
    choice_temperature: Sequence[float],
    temperature: float,
) -> list[Step]:
    """Steps after which `left` are still masked."""
    return [
        Step(
            index=i,
            num_masked_before=before,
            num_masked_after=after,
            guidance=guidance[i],
            temperature=temperature,
            choice_temperature=choice_temperature[i],
        )
        for i, (before, after) in enumerate(pairwise([num_masked, *left]))
    ]


def _in_reach(wanted: Sequence[float], num_masked: int) -> list[int]:
    """Tokens left after each step, as wanted (rounded down) as far as each step can decide one at least; the
    last one decides the rest.
    """
    last, left, result = len(wanted) - 1, num_masked, []
    for i in range(last):
        left = max(last - i, min(left - 1, math.floor(wanted[i])))
        result.append(left)
    return [*result, 0]


def _left_after(num_masked: int, counts: Sequence[int]) -> list[int]:
    left = []
    for count in counts:
        num_masked -= count
        left.append(num_masked)
    return left


def _check_steps(num_masked: int, num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"steps must be at least 1, got {num_steps}")
    if num_steps > num_masked:
        raise ValueError(
            f"{num_steps} steps cannot each decide one of {num_masked} masked tokens: take fewer steps"
        )
