"""What a call of a pipeline is given: checked, and in the form that a decode takes."""

from collections.abc import Sequence
from dataclasses import replace

from swiftmask.core.protocol import SamplingOptions, Spec
from swiftmask.core.ranges import SEED, check
from swiftmask.core.types import Schedule, Step


def check_options(sampling: SamplingOptions, spec: Spec) -> None:
    """Errors: ValueError for an option that the kind of head has no use for."""
    kind, foreign = ("continuous tokens", ("choice_temperature",))
    if spec.codebook_size is not None:
        kind, foreign = "codes, sampled in one head call", ("denoising_steps", "sampler", "noisiest_timestep")
    given = [name for name in foreign if getattr(sampling, name) is not None]
    if given:
        raise ValueError(f"{spec.name} draws {kind}: leave out {' and '.join(given)}")


def with_chains(schedule: Schedule, length: int) -> list[Step]:
    """The schedule with every denoising chain that long."""
    return [
        step if step.denoising is None else replace(step, denoising=replace(step.denoising, num_steps=length))
        for step in schedule
    ]


def chosen_seeds(seeds: Sequence[int] | None, count: int) -> list[int]:
    """One seed for each of `count` images. Errors: ValueError for another number, or one out of range."""
    chosen = list(range(count)) if seeds is None else list(seeds)
    if len(chosen) != count:
        raise ValueError(f"one seed per picture: got {len(chosen)} seeds for {count} pictures")
    for place, seed in enumerate(chosen):
        check(f"seeds[{place}]", seed, SEED, int)
    return [int(seed) for seed in chosen]


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"size must be one number of pixels, or height and width, got {size!r}")
    return sides
