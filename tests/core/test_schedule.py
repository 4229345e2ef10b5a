"""Schedules: exact upstream tables, and what must hold for every length and number of steps."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from verify.kinds.maskgit_schedules import CURVES

from swiftmask.core import schedule as s
from swiftmask.core.types import Denoising, Step

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "maskgit_schedules.json").read_text())
DIALECTS = [s.valeo_schedule, s.mar_schedule, s.meissonic_schedule, s.dimoo_schedule]

MEISSONIC_LEFT = {
    (4096, 6): "3956 3547 2896 2047 1060",
    (4096, 12): "4060 3956 3784 3547 3249 2896 2493 2047 1567 1060 534",
    (1024, 12): "1015 989 946 886 812 724 623 511 391 265 133",
    (
        1024,
        24,
    ): "1021 1015 1004 989 969 946 918 886 851 812 769 724 675 623 568 511 452 391 329 265 199 133 66",
}
DIMOO_LEFT = """
 4094 4091 4084 4076 4065 4051 4035 4017 3996 3973 3947 3919 3889 3856 3821 3784 3744 3702 3658 3612
3563 3513 3460 3405 3348 3289 3229 3166 3101 3034 2966 2896 2824 2750 2675 2598 2519 2439 2358 2275
2191 2105 2018 1930 1841 1751 1659 1567 1474 1379 1284 1189 1092 995 897 799 700 601 501 401 301 200
100 0
"""
MAR_DECIDED = {
    1: "256",
    2: "75 181",
    4: "20 55 84 97",
    8: "5 15 24 31 39 45 48 49",
    16: "2 3 7 8 11 13 15 16 19 20 22 23 23 25 24 25",
    32: "1 1 1 2 3 4 3 5 5 6 6 7 7 8 8 8 10 9 10 10 11 11 11 12 11 12 12 13 12 12 13 12",
    256: "1 " * 256,
}


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("name", GOLDEN["reveal_counts"])
def test_valeo_golden_counts(name: str) -> None:
    curve, num_steps = name.split("_")
    counts = s.valeo_reveal_counts(GOLDEN["grid"] ** 2, int(num_steps), CURVES[curve])
    assert counts == GOLDEN["reveal_counts"][name]


def test_valeo_golden_counts_at_256_pixels() -> None:
    assert s.valeo_reveal_counts(256, 8) == [1, 18, 26, 32, 38, 43, 48, 50]
    assert s.valeo_reveal_counts(256, 12) == [1, 9, 13, 17, 19, 22, 24, 26, 28, 30, 32, 35]


@pytest.mark.parametrize(("length", "num_steps"), MEISSONIC_LEFT)
def test_meissonic_table(length: int, num_steps: int) -> None:
    left = [step.num_masked_after for step in s.meissonic_schedule(length, num_steps)]
    assert left == [*_numbers(MEISSONIC_LEFT[length, num_steps]), 0]


def test_dimoo_table() -> None:
    assert [step.num_masked_after for step in s.dimoo_schedule(4096, 64)] == _numbers(DIMOO_LEFT)


@pytest.mark.parametrize("num_steps", MAR_DECIDED)
def test_mar_table(num_steps: int) -> None:
    decided = [step.num_decided for step in s.mar_schedule(256, num_steps)]
    assert decided == _numbers(MAR_DECIDED[num_steps])


@pytest.mark.parametrize("num_steps", [12, 20, 64, 100])
def test_mar_follows_its_formula(num_steps: int) -> None:
    left = [256]
    for k in range(1, num_steps):
        left.append(max(1, min(left[-1] - 1, math.floor(256 * math.cos(math.pi / 2 * k / num_steps)))))
    assert [step.num_masked_before for step in s.mar_schedule(256, num_steps)] == left


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("length", [1, 2, 7, 16, 144, 256, 1000])
def test_counts_add_up(dialect: Callable[..., list[Step]], length: int) -> None:
    """From every length, as of a partly filled canvas: each step decides something, the last the rest."""
    for num_steps in {1, 2, 3, 5, 12, 32, length - 1, length}:
        if not 1 <= num_steps <= length:
            continue
        steps = dialect(length, num_steps)
        assert [step.index for step in steps] == list(range(num_steps))
        assert all(step.num_decided >= 1 for step in steps)
        assert sum(step.num_decided for step in steps) == length
        assert steps[0].num_masked_before == length
        assert steps[-1].num_masked_after == 0
        assert all(a.num_masked_after == b.num_masked_before for a, b in pairwise(steps))
        assert all(step.full for step in steps)


@pytest.mark.parametrize(
    "dialect", [s.valeo_schedule, s.mar_schedule, s.meissonic_schedule, s.dimoo_schedule]
)
def test_a_power_of_the_share_still_masked(dialect: Callable[..., list[Step]]) -> None:
    """Each step leaves (n / 4096) ** power of the canvas where the model's own schedule leaves n tokens."""
    own, early, late = (dialect(4096, 12, schedule_power=power) for power in (1.0, 2.0, 0.5))
    assert own == dialect(4096, 12)
    for steps, power in ((early, 2.0), (late, 0.5)):
        wanted = [(step.num_masked_after / 4096) ** power * 4096 for step in own[:-1]]
        left = [step.num_masked_after for step in steps]
        assert left[:-1] == pytest.approx(wanted, abs=3)
        assert left[-1] == 0
    assert early[-1].num_decided < own[-1].num_decided < late[-1].num_decided


@pytest.mark.parametrize(
    "dialect", [s.valeo_schedule, s.mar_schedule, s.meissonic_schedule, s.dimoo_schedule]
)
@pytest.mark.parametrize("power", [0.1, 1.5, 20.0])
def test_every_power_adds_up(dialect: Callable[..., list[Step]], power: float) -> None:
    for length, num_steps in ((1, 1), (7, 7), (144, 5), (1000, 64)):
        steps = dialect(length, num_steps, schedule_power=power)
        assert sum(step.num_decided for step in steps) == length
        assert min(step.num_decided for step in steps) >= 1


def test_mar_guidance_follows_what_is_decided_whatever_the_power() -> None:
    steps = s.mar_schedule(256, 8, guidance=3.0, schedule_power=2.0)
    assert [step.guidance for step in steps[:-1]] == pytest.approx(
        [1 + 2 * (256 - step.num_masked_after) / 256 for step in steps[:-1]]
    )


@pytest.mark.parametrize("curve", CURVES.values())
def test_every_curve_adds_up(curve: s.Curve) -> None:
    for length in (16, 100, 1024):
        for num_steps in (1, 2, 9, 15, 16):
            counts = s.valeo_reveal_counts(length, num_steps, curve)
            assert len(counts) == num_steps
            assert sum(counts) == length
            assert min(counts) >= 1


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("num_steps", "message"), [(0, "at least 1, got 0"), (17, "take fewer steps")])
def test_impossible_steps(dialect: Callable[..., list[Step]], num_steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dialect(16, num_steps)


def test_valeo_guidance_rises_and_noise_falls() -> None:
    """The reference's weight w i/(N-1) with guidance = 1 + w: off at first, whole at the end."""
    steps = s.valeo_schedule(1024, 15, guidance=3.8, temperature=0.5, choice_temperature=7.0)
    for i, step in enumerate(steps):
        assert step.guidance == pytest.approx(1 + 2.8 * i / 14)
        assert step.choice_temperature == pytest.approx(7 * (1 - i / 14))
        assert step.temperature == 0.5
    assert steps[-1].choice_temperature == 0.0
    assert s.valeo_schedule(16, 1, guidance=3.8)[0].guidance == pytest.approx(3.8)


def test_mar_guidance_never_quite_arrives() -> None:
    steps = s.mar_schedule(256, 64, guidance=2.9)
    assert steps[0].guidance == pytest.approx(1 + 1.9 / 256)
    assert steps[-1].guidance == pytest.approx(1 + 1.9 * 255 / 256)


def test_mar_guidance_may_stay() -> None:
    steps = s.mar_schedule(256, 8, guidance=2.9, guidance_curve=s.constant_guidance)
    assert {step.guidance for step in steps} == {2.9}


def test_denoising_as_data() -> None:
    steps = s.mar_schedule(256, 6)
    assert {step.denoising for step in steps} == {None}
    assert [step.denoising for step in s.with_denoising(steps, 10)] == [Denoising(num_steps=10)] * 6
    annealed = s.with_denoising(steps, (50, 5), deterministic=True)
    expected = [Denoising(num_steps=count, deterministic=True) for count in (50, 41, 32, 23, 14, 5)]
    assert [step.denoising for step in annealed] == expected
    assert [step.num_masked_after for step in annealed] == [step.num_masked_after for step in steps]
    assert s.with_denoising(steps[:1], (50, 5))[0].denoising == Denoising(num_steps=50)
    for wrong in (0, (4, 0)):
        with pytest.raises(ValueError, match="denoising steps must be at least 1"):
            s.with_denoising(steps, wrong)


def test_choice_noise_of_the_cosine_dialects() -> None:
    meissonic = [step.choice_temperature for step in s.meissonic_schedule(256, 5, choice_temperature=2.0)]
    assert meissonic == pytest.approx([2, 1.5, 1, 0.5, 0])
    assert {step.choice_temperature for step in s.dimoo_schedule(256, 5)} == {1.0}


def test_precision_of_the_cosine_matters() -> None:
    """cos(pi/3) floors to 511 in float32, to 512 in float64: upstream tables depend on it."""
    assert s.cosine_left(1024, 3, torch.float32)[1] == 511
    assert s.cosine_left(1024, 3, torch.float64)[1] == 512


@pytest.mark.parametrize("name", GOLDEN["full_steps"])
def test_golden_full_steps(name: str) -> None:
    num_steps, num_full = map(int, name.split("_"))
    assert s.uniform_full_steps(num_steps, num_full) == GOLDEN["full_steps"][name]


@pytest.mark.parametrize(
    ("num_steps", "num_full", "expected"),
    [
        (15, 5, "0 3 6 9 12"),
        (15, 10, "0 2 3 4 6 8 9 10 12 14"),
        (32, 12, "0 3 5 8 11 13 16 19 21 24 27 29"),
        (64, 9, "0 7 14 21 28 36 43 50 57"),
        (64, 11, "0 6 12 17 23 29 35 41 47 52 58"),
        (64, 14, "0 5 9 14 18 23 27 32 37 41 46 50 55 59"),
    ],
)
def test_full_steps_of_the_paper(num_steps: int, num_full: int, expected: str) -> None:
    assert s.uniform_full_steps(num_steps, num_full) == _numbers(expected)


def test_full_steps_are_distinct_and_inside() -> None:
    for num_steps in range(1, 40):
        for num_full in range(1, num_steps + 1):
            placed = s.uniform_full_steps(num_steps, num_full)
            assert placed[0] == 0
            assert len(set(placed)) == num_full
            assert max(placed) < num_steps
        assert s.uniform_full_steps(num_steps, num_steps) == list(range(num_steps))


@pytest.mark.parametrize("num_full", [0, 9])
def test_impossible_budget(num_full: int) -> None:
    with pytest.raises(ValueError, match=r"between 1 and the number of steps \(8\)"):
        s.uniform_full_steps(8, num_full)


def test_full_steps_as_data() -> None:
    steps = s.with_full_steps(s.valeo_schedule(16, 5), [0, 3])
    assert [step.full for step in steps] == [True, False, False, True, False]
    for wrong in ([1, 2], [0, 5], [0, -1]):
        with pytest.raises(ValueError, match=r"must contain step 0 and lie in 0\.\.4"):
            s.with_full_steps(steps, wrong)
