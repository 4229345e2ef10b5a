"""What a model family says about training one of its models from scratch, or going on from one.

`models/<name>/training.py` exports a `TRAINABLE`. A recipe (recipes/base_model.py) brings data, tokenizer and
optimisation, and knows no family by name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from swiftmask.core.protocol import MaskedGenerator, SamplingOptions

S = TypeVar("S")
LabelledRows = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Labels [B] and token rows of images, in batches."""

TokenizerKind = Literal["vq", "kl", "vqgan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a fresh network has to fit.

    Attributes:
        codec: of the tokenizer, and the side of its images in pixels.
        class_names, attributes_NA: of a model of classes: names, and what classes have in common as integers,
            A for each.
        captions: of a model of prompts: all texts that it will see, for its vocabulary.
        trained: of a model of classes: the images that it will see.
    """

    codec: Any
    resolution: int
    class_names: tuple[str, ...] = ()
    attributes_NA: Tensor | None = None
    captions: Sequence[str] = ()
    trained: LabelledRows = tuple

    def has_classes(self, number: int, names: Sequence[str]) -> bool:
        """Whether the classes of a model are those of the data. Those of a model without names are, if they
        are as many.
        """
        return number == len(self.class_names) and (not names or tuple(names) == self.class_names)

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.resolution // self.codec.config.downscale


@dataclass(frozen=True, slots=True, kw_only=True)
class NoSettings:
    """Of a loss that has none."""


class Task(Protocol):
    """One model in training."""

    @property
    def trainer(self) -> nn.Module:
        """Called with a batch; gives the loss and metrics."""
        ...

    def batch(self, rows: Tensor, what: Tensor | Sequence[str], generator: torch.Generator) -> object:
        """What one update reads.

        Args:
            rows: tokens as the cache holds them: codes [B, H, W], or moments [B, 2C, H, W] of latents.
            what: labels [B], or captions.
            generator: on the CPU; decides masks, noise and what is dropped for guidance.
        """
        ...

    def model(self, trainer: nn.Module, sampling: SamplingOptions, steps: int) -> MaskedGenerator:
        """The model as it is used, around the networks of a trainer such as this task's."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable(Generic[S]):
    """A family's own part of training.

    Attributes:
        draws: what its models are conditioned on.
        tokenizers: kinds that it reads, first the one that is trained for it: "vq" for codes, "kl" for
            latents, "vqgan" for MaskGIT's released codec.
        sizes: networks by name, "tiny" to the released ones; dataclasses whose fields are all set.
        unset: the same dataclass with nothing set: what a recipe lets users override.
        objective: the family's settings of the loss, a dataclass.
        sampling: defaults of models trained from scratch.
        fresh: `fresh(sizes, subject, objective)` is a task at random weights.
        resumed: `resumed(model, subject, objective)` goes on from a model. Errors: ValueError if it does not
            fit the subject.
    """

    draws: Literal["class", "prompt"]
    tokenizers: tuple[TokenizerKind, ...]
    sizes: Mapping[str, S]
    unset: S
    objective: Any
    sampling: SamplingOptions
    fresh: Callable[[S, Subject, Any], Task]
    resumed: Callable[[Any, Subject, Any], Task]

    def chosen(self, size: str, overrides: S) -> S:
        """The sizes of that name, with what is set in `overrides`. Errors: ValueError for an unknown name."""
        if size not in self.sizes:
            raise ValueError(f"unknown size {size!r}: choose one of {', '.join(self.sizes)}")
        given = {f.name: getattr(overrides, f.name) for f in fields(overrides)}  # type: ignore[arg-type]
        return replace(self.sizes[size], **{k: v for k, v in given.items() if v is not None})  # type: ignore[type-var]


def require_same(what: str, found: object, expected: object) -> None:
    """Errors: ValueError if a model that training goes on from has something other than the data."""
    if found != expected:
        raise ValueError(
            f"the model to go on from has {what} {found}, the data and tokenizer give {expected}"
        )
