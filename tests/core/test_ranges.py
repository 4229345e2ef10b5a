"""Ranges of numbers, and what is checked of several settings together. That every option and setting has one,
tests/hostile shows.
"""

import math

import pytest

from swiftmask.cli.overrides import override
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import GUIDANCE, RANGES, SEED, check
from swiftmask.registry import recipe_module

OUTSIDE = (math.nan, math.inf, -math.inf)


def test_settings_are_checked_together() -> None:
    """Any order; each alone would be refused."""
    config = recipe_module("maskgit-scenes-speed-rl").recipe()
    wanted = ["speed_rl.generation_batch_size=30", "speed_rl.num_generations=5"]
    assert override(config, wanted) == override(config, wanted[::-1])
    with pytest.raises(ValueError, match="multiple of num_generations"):
        override(config, wanted[:1])


@pytest.mark.parametrize("value", [0, 0.5, -3, math.nan, math.inf, 1e9, True, "3", None])
def test_guidance_says_its_scale(value: object) -> None:
    with pytest.raises(ValueError, match=r"^guidance must be a number between 1 and 100, got "):
        check("guidance", value, GUIDANCE)
    if value is not None:
        with pytest.raises(ValueError, match="guidance must be"):
            SamplingOptions(guidance=value)  # type: ignore[arg-type]
    if value in (0, 0.5):
        with pytest.raises(ValueError, match=r"1 is off.*w.*cfg.*guidance - 1"):
            check("guidance", value, GUIDANCE)


@pytest.mark.parametrize("value", [-1, 2**64, 1.7, 1.0, True, "0", None])
def test_seeds_are_whole_numbers_of_64_bits(value: object) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 2\*\*64 - 1, got"):
        check("seed", value, SEED, int)
    check("seed", 2**64 - 1, SEED, int)


def test_ends_belong_to_a_range_unless_it_says_otherwise() -> None:
    for allowed in RANGES.values():
        assert allowed.holds(allowed.low) != allowed.above
        assert allowed.holds(allowed.high) != allowed.below
        assert not any(allowed.holds(value) for value in OUTSIDE)
