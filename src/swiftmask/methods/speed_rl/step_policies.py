"""How many steps each picture of a group takes, and who decides it.

A policy is named in one line of a recipe or of the command line (`step_policy`):

    fixed:16                      every picture
    uniform:8,12,16,24            each picture draws one
    stratified:8,12,16,24         every group holds each count equally often
    curriculum:32,8,200           stratified around a centre that moves from 32 to 8 over 200 rounds
    threshold:0.9,1,64,16         by confidence: probability 0.9, 1 to 64 tokens a step, the plan of 16 steps

A group of one step count tells nothing about speed (rewards.py), so `stratified` is the default.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator

from swiftmask.methods.speed_rl.rollouts import AsConfident, Draw, as_planned

_SPREAD = (0.5, 0.75, 1.0, 1.5)
"""Step counts of a curriculum as shares of its centre: 8, 12, 16, 24 around 16."""

Counts = list[list[int]]
"""Planned number of steps of each picture, one list a group."""


class StepPolicy(Protocol):
    """`draw` decodes by a plan of so many steps; all but `threshold` follow it to the letter."""

    @property
    def draw(self) -> Draw: ...

    def counts(self, number: int, num_prompts: int, num_generations: int, generator: Generator) -> Counts:
        """Planned step counts of round `number`. Errors: ValueError for a group that cannot hold them."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same for all."""

    num_steps: int
    draw: Draw = as_planned

    def counts(self, number: int, num_prompts: int, num_generations: int, generator: Generator) -> Counts:
        return [[self.num_steps] * num_generations for _ in range(num_prompts)]


@dataclass(frozen=True, slots=True)
class Uniform:
    """Drawn for every picture by itself."""

    choices: tuple[int, ...]
    draw: Draw = as_planned

    def counts(self, number: int, num_prompts: int, num_generations: int, generator: Generator) -> Counts:
        shape = (num_prompts, num_generations)
        chosen_PK = torch.randint(len(self.choices), shape, generator=generator).tolist()
        return [[self.choices[i] for i in group] for group in chosen_PK]


@dataclass(frozen=True, slots=True)
class Stratified:
    """Each count as often as any other in every group; where that leaves some over, a drawn one begins."""

    choices: tuple[int, ...]
    draw: Draw = as_planned

    def counts(self, number: int, num_prompts: int, num_generations: int, generator: Generator) -> Counts:
        size = len(self.choices)
        if num_generations < size:
            raise ValueError(
                f"a group of {num_generations} cannot hold each of the step counts {self.choices}: "
                f"take num_generations={size} or more, or fewer counts"
            )
        first_P = torch.randint(size, (num_prompts,), generator=generator).tolist()
        return [[self.choices[(first + i) % size] for i in range(num_generations)] for first in first_P]


@dataclass(frozen=True, slots=True)
class Curriculum:
    """Stratified around a centre that moves from `first` to `last` over `num_rounds`."""

    first: int
    last: int
    num_rounds: int
    draw: Draw = as_planned

    def counts(self, number: int, num_prompts: int, num_generations: int, generator: Generator) -> Counts:
        centre = self.first + (self.last - self.first) * min(1.0, number / self.num_rounds)
        choices = tuple(sorted({max(1, round(centre * share)) for share in _SPREAD}))
        return Stratified(choices).counts(number, num_prompts, num_generations, generator)


@dataclass(frozen=True, slots=True)
class ByConfidence:
    """As many as the policy's confidence asks for; the plan only says what a step is told."""

    draw: Draw
    num_steps: int

    def counts(self, number: int, num_prompts: int, num_generations: int, generator: Generator) -> Counts:
        return Fixed(self.num_steps).counts(number, num_prompts, num_generations, generator)


def _fixed(values: Sequence[float]) -> StepPolicy:
    (num_steps,) = values
    return Fixed(_whole(num_steps))


def _uniform(values: Sequence[float]) -> StepPolicy:
    return Uniform(_choices(values))


def _stratified(values: Sequence[float]) -> StepPolicy:
    return Stratified(_choices(values))


def _curriculum(values: Sequence[float]) -> StepPolicy:
    first, last, num_rounds = map(_whole, values)
    return Curriculum(first, last, num_rounds)


def _threshold(values: Sequence[float]) -> StepPolicy:
    threshold, *rest = values
    fewest, most, num_steps = map(_whole, rest)
    if not 0 < threshold <= 1 or fewest > most:
        raise ValueError(values)
    return ByConfidence(AsConfident(threshold, fewest, most), num_steps)


STEP_POLICIES: dict[str, tuple[Callable[[Sequence[float]], StepPolicy], str]] = {
    "fixed": (_fixed, "fixed:16"),
    "uniform": (_uniform, "uniform:8,12,16,24"),
    "stratified": (_stratified, "stratified:8,12,16,24"),
    "curriculum": (_curriculum, "curriculum:32,8,200"),
    "threshold": (_threshold, "threshold:0.9,1,64,16"),
}
"""How each kind is read, and an example of it."""


def parse_step_policy(text: str) -> StepPolicy:
    """The policy a line such as "stratified:8,12,16,24" names.

    Errors: ValueError naming the kinds there are, or an example of the kind.
    """
    kind, _, numbers = text.partition(":")
    if kind not in STEP_POLICIES:
        examples = " or ".join(example for _, example in STEP_POLICIES.values())
        raise ValueError(f"unknown step policy {text!r}: expected such as {examples}")
    read, example = STEP_POLICIES[kind]
    try:
        return read([float(number) for number in numbers.split(",")])
    except ValueError as error:
        raise ValueError(f"step policy {text!r} cannot be read: expected such as {example!r}") from error


def _whole(value: float) -> int:
    """Errors: ValueError unless it is a whole number from 1."""
    if value < 1 or value != int(value):
        raise ValueError(value)
    return int(value)


def _choices(values: Sequence[float]) -> tuple[int, ...]:
    return tuple(sorted({_whole(value) for value in values}))
