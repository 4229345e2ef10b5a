"""What a model folder says about the files it is published as, so that `load` knows no family by name.

Every folder under `models/` exports a `FAMILY`; every folder under `models/` or `methods/` may export
`WEIGHTS_FILES`, the kinds of weights file that are published of it, told apart by their keys and shapes.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Protocol

import torch

from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.reading import State

Role = Literal["model", "codec", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """A kind of weights file.

    Attributes:
        what: what it holds, as in "a MaskGIT transformer (valeoai v1.0)".
        role: a "model" that a "codec" completes, that codec, or something "other".
        keys: that every file of the kind has.
        use: what to do with it, said where it is given for a model.
        fits: what shapes, or keys that must not be there, tell beyond that.
    """

    what: str
    role: Role
    keys: tuple[str, ...]
    use: str
    fits: Callable[[State], bool] = lambda state: True

    def holds(self, state: State) -> bool:
        """Whether keys and shapes are those of this kind."""
        return all(key in state for key in self.keys) and self.fits(state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a model is to be read; None leaves it to the family.

    Attributes:
        codec: file of the tokenizer, for a family published as loose files.
        text_encoder: folder of another text encoder than the model's own.
        blocks_on_device: how many blocks the device keeps, for a model larger than its memory.
        num_heads, codebook_size, resolution: what no tensor of a released file tells, for other files than
            the published ones.
        dtype: of the weights.
        device: where they go.
    """

    codec: Path | None = None
    text_encoder: Path | None = None
    blocks_on_device: int | None = None
    num_heads: int | None = None
    codebook_size: int | None = None
    resolution: int | None = None
    dtype: torch.dtype | None = None
    device: torch.device = torch.device("cpu")

    def given(self) -> set[str]:
        """Names of the options that were chosen, besides dtype and device."""
        names = {field.name for field in fields(self)} - {"dtype", "device"}
        return {name for name in names if getattr(self, name) is not None}

    def chosen(self, *names: str) -> dict[str, int]:
        """Those of some options that were chosen, as arguments."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class Reader(Protocol):
    """Reads a model from a file or a folder, in eval mode and frozen, in the wanted precision and place."""

    def __call__(self, source: Path, reading: Reading) -> MaskedGenerator: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How the models of a family are found on disk, and read.

    Attributes:
        draws: what its models are conditioned on.
        layout: what a released model looks like on disk, for complaints.
        options: of `Reading`, those that reading a released model has a use for.
        own_options: the same for a folder that `save_pretrained` wrote.
        is_released_folder: whether a folder is a released model; a family published as loose files is told
            by its `WEIGHTS_FILES` instead.
        read_released: from the released folder, or the file of the "model", whose codec is `reading.codec`.
        read_own: from a folder that `save_pretrained` wrote; see `own_reader`.
    """

    draws: Literal["class", "prompt"]
    layout: str
    read_released: Reader
    read_own: Reader
    options: frozenset[str] = frozenset()
    own_options: frozenset[str] = frozenset()
    is_released_folder: Callable[[Path], bool] = lambda folder: False


def own_reader(from_pretrained: Callable[[Path], torch.nn.Module]) -> Reader:
    """Of a family whose models are read in float32 on the CPU first."""
    return lambda source, reading: placed(from_pretrained(source), reading)


def placed(model: torch.nn.Module, reading: Reading) -> MaskedGenerator:
    """The model in the wanted precision and place."""
    model.to(device=reading.device, dtype=reading.dtype)
    return model  # type: ignore[return-value]
