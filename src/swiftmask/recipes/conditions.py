"""The model that a method's trainer starts from, and what it generates for while it trains.

A model of classes generates for all its classes in turn. A model of prompts needs the lines of a file, or the
captions of a data source; one that was trained on Scenes has captions of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import torch

from swiftmask.api import find_model, load
from swiftmask.core.settings import read_json, settings_of
from swiftmask.data.prompts import read_prompts
from swiftmask.data.scenes import World
from swiftmask.data.sources import (
    DataConfig,
    asked_of_captions,
    held_out,
    notice_in,
    open_source,
    require_captions,
)
from swiftmask.data.sources.scenes import PROMPT_SEED
from swiftmask.pipeline import Pipeline
from swiftmask.sources import family_at

What = Sequence[int] | Sequence[str]
"""Class labels or prompts."""


class Conditions(Protocol):
    """What is generated for; its `repr` tells it apart from others.

    Attributes:
        name: for provenance, such as "classes" or "prompts.txt".
    """

    @property
    def name(self) -> str: ...

    def at(self, number: int, count: int) -> What:
        """The labels or prompts of round `number`, a function of its arguments."""
        ...

    def listed(self, most: int) -> What:
        """Different ones: all of them, or the first `most` where there is no end."""
        ...


@dataclass(frozen=True)
class Listed:
    """A finite list, taken in turn, round after round.

    Attributes:
        asked: what the image of each prompt is to show, by column, where the file or the source says so.
    """

    name: str = field(repr=False)
    what: What
    asked: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)

    def at(self, number: int, count: int) -> What:
        what: Any = self.what
        return [what[(number * count + i) % len(what)] for i in range(count)]

    def listed(self, most: int) -> What:
        return self.what


@dataclass(frozen=True)
class SceneCaptions:
    """Captions of Scenes that no model was trained on, without end."""

    world: World

    @property
    def name(self) -> str:
        return f"captions of Scenes ({self.world.name})"

    def at(self, number: int, count: int) -> list[str]:
        return self.world.captions(PROMPT_SEED + number * count + torch.arange(count))

    def listed(self, most: int) -> list[str]:
        return list(dict.fromkeys(self.at(0, most)))


@dataclass(frozen=True, kw_only=True)
class Start:
    """The model of a run, read when it is asked for; what is wrong with the settings is said before.

    Attributes:
        model: whatever `swiftmask.load` reads.
        codec, text_encoder: files of a released model, as in `swiftmask.load`.
        prompts: file of prompts (data/prompts.py).
        data: source of captions (data/sources/opening.py), read as `source` says; those of held-out images
            are left out.

    Errors: ValueError or FileNotFoundError naming the setting and what to give.
    """

    model: str
    codec: str = ""
    text_encoder: str = ""
    prompts: str = ""
    data: str = ""
    source: DataConfig = DataConfig()
    _listed: Listed | None = field(init=False)

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("model is not set: add it to the command, as in model=runs/maskgit/model")
        if self.prompts and self.data:
            raise ValueError("prompts and data both say what to generate for: leave out one")
        draws_prompts = self.draws == "prompt"
        given = self.prompts or self.data
        if given and not draws_prompts:
            raise ValueError(f"{self.model} generates for its classes: leave out prompts and data")
        if draws_prompts and not given and self.world is None:
            raise ValueError(
                f"{self.model} generates for prompts: give some, as in prompts=prompts.txt (one a line), or "
                "data=products/ for the captions of a folder"
            )
        object.__setattr__(self, "_listed", self._read() if given else None)

    @classmethod
    def of(cls, recipe: object) -> Self:
        """As the settings of the same names of a recipe say."""
        return cls(**{each.name: getattr(recipe, each.name) for each in fields(cls) if each.init})

    @cached_property
    def path(self) -> Path:
        """Of the model on this machine."""
        return find_model(self.model, None, local_files_only=False)[0]

    @cached_property
    def draws(self) -> str:
        return family_at(self.path).draws

    @cached_property
    def world(self) -> World | None:
        """The Scenes that a model of prompts was trained on, as its provenance says."""
        path = self.path / "provenance.json"
        if self.draws == "class" or not path.is_file():
            return None
        found = read_json(path).get("world")
        return None if found is None else settings_of(World, found, source=str(path), name="world")

    def read(self, dtype: torch.dtype | None = None) -> Pipeline:
        """The model, frozen, on the CPU.

        Args:
            dtype: of the weights; None is the family's own.
        """
        codec, text_encoder = self.codec or None, self.text_encoder or None
        return load(self.model, codec=codec, text_encoder=text_encoder, dtype=dtype, device="cpu")

    @property
    def asked(self) -> Mapping[str, Mapping[str, str]]:
        """What the image of each prompt is to show, by column; empty where nothing says it."""
        return {} if self._listed is None else self._listed.asked

    @property
    def notice(self) -> str:
        """Licences and attributions that go with weights trained from the model."""
        return notice_in(self.path) if self.path.is_dir() else ""

    def conditions(self, model: Any) -> Conditions:
        """What `model`, which was read, generates for."""
        if self._listed is not None:
            return self._listed
        if self.world is not None:
            return SceneCaptions(self.world)
        return Listed("classes", range(model.spec.num_classes))

    def _read(self) -> Listed:
        """Errors: ValueError for columns that would be ignored, or images without captions."""
        if self.data:
            source = open_source(self.data, self.source)
            require_captions(source)
            kept = (~held_out(source, self.source.held_out)).nonzero()[:, 0].tolist()
            asked = asked_of_captions(source, kept)
            return Listed(f"captions of {source.name}", list(asked), asked)
        entries = read_prompts(self.prompts)
        used = [entry.line for entry in entries if entry.negative or entry.seed is not None]
        if used:
            raise ValueError(
                f"{self.prompts}, line {used[0]}: negative prompts and seeds are not used here: leave out "
                "these columns"
            )
        asked = {entry.text: entry.columns for entry in entries}
        return Listed(Path(self.prompts).name, list(asked), asked)
