"""What a call of a pipeline is given: checked, and in the form that a decode takes."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from types import UnionType
from typing import Any

from torch import Tensor

from swiftmask.core.protocol import SamplingOptions, Spec
from swiftmask.core.ranges import SEED, check
from swiftmask.core.types import Schedule, Step


def require_type(name: str, value: object, kind: type | UnionType | tuple[Any, ...], expected: str) -> None:
    """Errors: TypeError naming the argument for a value of another type. True is no number and no name."""
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} must be {expected}, got {value!r:.80}")


def in_order(name: str, values: object, expected: str) -> list[Any]:
    """The values of a list, tuple, range or array. Errors: TypeError with the argument's name for others."""
    unordered = isinstance(values, str | bytes | set | frozenset | dict)
    if unordered or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of {expected}, got {values!r:.80}")
    return list(values)


def check_options(sampling: SamplingOptions, spec: Spec) -> None:
    """Errors: ValueError for an option that the kind of head has no use for."""
    kind, foreign = ("continuous tokens", ("choice_temperature",))
    if spec.codebook_size is not None:
        kind, foreign = "codes, sampled in one head call", ("denoising_steps", "sampler", "noisiest_timestep")
    given = [name for name in foreign if getattr(sampling, name) is not None]
    if given:
        raise ValueError(f"{spec.name} generates {kind}: leave out {' and '.join(given)}")


def with_chains(schedule: Schedule, length: int) -> list[Step]:
    """The schedule with every denoising chain that long."""
    return [
        step if step.denoising is None else replace(step, denoising=replace(step.denoising, num_steps=length))
        for step in schedule
    ]


def chosen_seeds(seeds: Sequence[int] | None, count: int) -> list[int]:
    """One seed for each of `count` images.

    Errors: ValueError for another number, or one out of range; TypeError for what is no list.
    """
    chosen = list(range(count)) if seeds is None else in_order("seeds", seeds, "whole numbers")
    if len(chosen) != count:
        raise ValueError(f"one seed per image: got {len(chosen)} seeds for {count} images")
    for place, seed in enumerate(chosen):
        check(f"seeds[{place}]", seed, SEED, int)
    return [int(seed) for seed in chosen]


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, Integral) else tuple(size) if isinstance(size, Sequence) else ()
    if len(sides) != 2 or isinstance(size, str | bytes):
        raise ValueError(f"size must be one number of pixels, or height and width, got {size!r}")
    return sides  # type: ignore[return-value]  # of what kind the sides are is checked with their range


def check_size(size: tuple[int, int], multiple: int) -> None:
    """Errors: ValueError naming the nearest size, unless height and width are multiples of a number."""
    if any(side < multiple or side % multiple for side in size):
        near = [max(multiple, round(side / multiple) * multiple) for side in size]
        raise ValueError(
            f"height and width must be multiples of {multiple}, got {size[0]}x{size[1]}: take "
            f"{near[0]}x{near[1]}"
        )


def check_images(images_B3HW: Tensor, size: tuple[int, int]) -> None:
    """Errors: ValueError for images of another size than a model generates."""
    height, width = images_B3HW.shape[-2:]
    if (height, width) != tuple(size):
        raise ValueError(
            f"expected images of {size[0]}x{size[1]} (height x width), got {height}x{width}: resize them, or "
            "take sized"
        )
