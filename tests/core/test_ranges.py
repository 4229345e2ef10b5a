"""Every number has a range, and nothing outside of it gets in: generated from the dataclasses there are."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from typing import Any

import pytest

from swiftmask.cli import COMMANDS
from swiftmask.cli.errors import option
from swiftmask.cli.overrides import override
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import GUIDANCE, RANGES, SEED, Range, check, has_numbers, range_of
from swiftmask.registry import recipe_module, recipe_names

OUTSIDE = (math.nan, math.inf, -math.inf, -1e30, 1e30)


def commands() -> Iterator[tuple[str, type]]:
    for name, command in COMMANDS.items():
        yield name, getattr(import_module(f"swiftmask.cli.{command.module}"), command.name)


def options() -> list[Any]:
    """Every option that takes numbers."""
    return [
        pytest.param(
            name, field.name, range_of(made, field.name), field.type, id=f"{name} {option(field.name)}"
        )
        for name, made in commands()
        for field in fields(made)
        if has_numbers(field.type)
    ]


def outside(allowed: Range, annotation: object) -> list[str]:
    """What an option of this range must not be."""
    whole = "float" not in str(annotation)
    numbers = [allowed.low - 1, 10 * allowed.high + 1, *(() if whole else OUTSIDE)]
    numbers += [allowed.low] if allowed.above else []
    numbers += [allowed.high] if allowed.below else []
    return [str(int(number)) if whole else str(number) for number in numbers] + ["x", ""]


@pytest.mark.parametrize(("command", "field", "allowed", "annotation"), options())
def test_an_option_out_of_range_is_one_line_and_code_2(command, field, allowed, annotation, capsys) -> None:
    from swiftmask.cli import main

    for text in outside(allowed, annotation):
        with pytest.raises(SystemExit) as stop:
            main([*command.split(), *REQUIRED.get(command, []), option(field), text])
        said = capsys.readouterr()
        assert stop.value.code == 2, (text, said)
        assert said.out == "" and said.err.count("\n") == 1, (text, said)
        assert option(field) in said.err or "xpected" in said.err, (text, said)


REQUIRED = {
    "generate": ["maskgit-scenes", "0"],
    "evaluate": ["maskgit-scenes"],
    "compare": ["somewhere", "--reference", "elsewhere", "--extractor", "scenes"],
    "bench quality": ["maskgit-scenes"],
    "bench speed": ["maskgit-scenes"],
    "bench report": ["maskgit-scenes"],
    "tune": ["maskgit-scenes"],
    "convert": ["some.pth", "--out", "nowhere"],
    "data emoji": ["--out", "nowhere"],
    "serve-reward": ["scenes-judge"],
}
"""What a command does not go without; none of it is read before the numbers are checked."""


def settings() -> list[Any]:
    """Every setting of every recipe that takes numbers."""
    return [
        pytest.param(recipe, key, allowed, annotation, id=f"{recipe} {key}")
        for recipe in recipe_names()
        for key, allowed, annotation in numbers_of(recipe_module(recipe).recipe())
    ]


def numbers_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Range, object]]:
    if type(config).__module__.startswith(("swiftmask.models", "swiftmask.core.vq")):
        return  # sizes of a network: checked where config.json is read
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from numbers_of(value, f"{prefix}{field.name}.")
        elif has_numbers(field.type):
            yield f"{prefix}{field.name}", range_of(type(config), field.name), field.type


@pytest.mark.parametrize(("recipe", "key", "allowed", "annotation"), settings())
def test_a_setting_out_of_range_is_refused(recipe, key, allowed, annotation) -> None:
    config = recipe_module(recipe).recipe()
    for text in outside(allowed, annotation):
        text = (
            ",".join([text] * len(annotation.__args__)) if "tuple[float, float]" in str(annotation) else text
        )
        with pytest.raises(ValueError, match=key.rpartition(".")[2]):
            override(config, [f"{key}={text}"])


def test_settings_are_checked_together() -> None:
    """Any order; each alone would be refused."""
    config = recipe_module("maskgit-scenes-speed-rl").recipe()
    wanted = ["speed_rl.speed.fastest=9", "speed_rl.speed.slowest=30", "speed_rl.speed.reference=12"]
    wanted.append("speed_rl.step_policy=stratified:9,12,30")
    assert override(config, wanted) == override(config, wanted[::-1])
    with pytest.raises(ValueError, match="speed"):
        override(config, wanted[:1])


def test_a_speed_reward_that_tells_nothing_is_refused() -> None:
    config = recipe_module("maskgit-scenes-speed-rl").recipe()
    around = replace(config.speed_rl.speed, fastest=8, reference=16, slowest=24)
    with pytest.raises(ValueError, match="same for all step counts"):
        replace(config.speed_rl, speed=around, step_policy="stratified:4,5,6")
    with pytest.raises(ValueError, match="same for all step counts"):
        replace(config.speed_rl, speed=around, step_policy="uniform:24,32")
    replace(config.speed_rl, speed=replace(around, weight=0.0), step_policy="stratified:4,5,6")


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
