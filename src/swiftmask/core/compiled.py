"""Compile the blocks that repeat in a network, in place ("regional compilation" in PyTorch's words).

All blocks of one class run the same compiled code, so that a network of 32 layers compiles as fast as one of
two. `nn.Module.compile` leaves names in the state dict as they are, and a copy of a compiled module is not
compiled: operations are counted, and students trained, on plain copies. Sizes are dynamic from the first call
on: prompts of other lengths, other batches and later decode steps need no further compilation. One row
(batch 1 without guidance) is the exception, which PyTorch always compiles for itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn
from torch.fx.experimental import _config as sizes_config

from swiftmask.core.protocol import Condition, FeatureFn
from swiftmask.core.types import Canvas, Features, Record, Step

_WITHOUT_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""Modes that record CUDA graphs, and what is left of them without."""

MODES = ("default", *_WITHOUT_GRAPHS, "max-autotune-no-cudagraphs")
"""Those of `torch.compile`."""


class RepeatedBlocks(NamedTuple):
    """The modules that take most of a step's time.

    Attributes:
        per_step: run once in a decode step.
        per_denoising_step: run many times in one (the blocks of a diffusion head). They are never recorded as
            CUDA graphs, which would be one for each of these calls.
    """

    per_step: Sequence[nn.Module]
    per_denoising_step: Sequence[nn.Module] = ()


@runtime_checkable
class Repeating(Protocol):
    """A model or a feature function that can be compiled."""

    def repeated_blocks(self) -> RepeatedBlocks: ...


def mode_of(wanted: bool | str) -> str | None:
    """The mode of `load(compile=...)`: True is "default", False is None.

    Errors: ValueError for a mode that `torch.compile` does not have.
    """
    if isinstance(wanted, bool):
        return "default" if wanted else None
    if wanted not in MODES:
        raise ValueError(f"unknown compile mode {wanted!r}: use True or one of {', '.join(MODES)}")
    return wanted


def compile_blocks(part: object, mode: str, *, backend: Any = "inductor") -> None:
    """Compile the repeated blocks of `part` in place, if it has any.

    Args:
        backend: of `torch.compile`.
    """
    if not isinstance(part, Repeating):
        return
    blocks = part.repeated_blocks()
    # The keyword of the default mode is left out: backends other than inductor know no modes.
    for mode_of_blocks, modules in (
        (mode, blocks.per_step),
        (_WITHOUT_GRAPHS.get(mode, mode), blocks.per_denoising_step),
    ):
        options = {} if mode_of_blocks == "default" else {"mode": mode_of_blocks}
        for module in modules:
            module.compile(dynamic=True, backend=backend, **options)


@contextmanager
def equal_sizes_apart() -> Iterator[None]:
    """What compiles within takes sizes that happen to be equal for different ones.

    Else PyTorch takes it for a rule that, say, the batch has as many rows as a matrix, and compiles again for
    the next batch.
    """
    with sizes_config.patch(use_duck_shape=False):  # pyright: ignore[reportAttributeAccessIssue]
        yield


def records_graphs(mode: str | None) -> bool:
    return mode in _WITHOUT_GRAPHS


class MarkedSteps:
    """A feature function whose CUDA graphs begin anew at every step.

    Without the mark, PyTorch takes each block for a step of its own and overwrites what the block before it
    returned.
    """

    def __init__(self, inner: FeatureFn) -> None:
        self.name, self.settings = inner.name, inner.settings
        self._inner = inner

    def __call__(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        torch.compiler.cudagraph_mark_step_begin()
        return self._inner(canvas, condition, step, previous)
