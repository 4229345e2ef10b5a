"""Presets: settings to generate with, and what was measured of them, as one JSON file.

A preset belongs to the weights it was measured on and says whose they are by a fingerprint. Applying it to a
pipeline is `swiftmask.apply_preset`.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.settings import read_json, record_of
from swiftmask.core.writing import write_text
from swiftmask.evaluate.quantities import Spread

VERSION = 3
_KIND = "swiftmask preset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a base model generates; None leaves a choice to the pipeline.

    Attributes:
        steps: decode steps.
        shortcut, caching, marval, speed_rl: accelerators, as `accelerate` takes them by name or path.
        full_steps: how many steps run the backbone, or which.
        size: height and width of the images, for a model of several sizes.
        sampling: guidance, temperatures, and the sampler of a diffusion head.
    """

    steps: int | None = None
    shortcut: str | None = None
    caching: str | None = None
    marval: str | None = None
    speed_rl: str | None = None
    full_steps: int | tuple[int, ...] | None = None
    size: tuple[int, int] | None = None
    sampling: SamplingOptions = SamplingOptions()

    def __post_init__(self) -> None:
        check_fields(self)

    def over(self, defaults: Self) -> Self:
        """These settings, with `defaults` where they say nothing.

        A shortcut takes the place of a caching and the other way round.

        Errors: ValueError for another step count than the one that full steps are placed in.
        """
        replaces = self.shortcut is not None or self.caching is not None
        given = {name: getattr(self, name) for name in ("steps", "marval", "speed_rl", "full_steps", "size")}
        merged = replace(
            defaults,
            **{name: value for name, value in given.items() if value is not None},
            shortcut=self.shortcut if replaces else defaults.shortcut,
            caching=self.caching if replaces else defaults.caching,
            sampling=self.sampling.over(defaults.sampling),
        )
        moved = merged.steps != defaults.steps and self.full_steps is None
        if moved and isinstance(defaults.full_steps, tuple):
            raise ValueError(
                f"the full steps are placed in {defaults.steps} steps ({_listed(defaults.full_steps)}): "
                f"say how many of {merged.steps} are full, too"
            )
        return merged

    def same_accelerators(self, other: Self) -> bool:
        """Whether both name the same weights and the same way to save backbone calls."""
        named = ("shortcut", "caching", "marval", "speed_rl")
        return all(getattr(self, name) == getattr(other, name) for name in named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What one way to generate costs per image and reaches, on images that no search looked at.

    Attributes:
        values: by the key of a quantity.
    """

    name: str
    gflop: float
    ms: float
    values: dict[str, Spread]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a preset promises, and how that is known.

    Attributes:
        found: of the preset's settings.
        reference: of the full model at the step count that speed-ups are relative to.
        best_full: of the best full model there was, which `loss` is relative to.
        speedup: operations (or milliseconds, as asked) of the reference over those found.
        objective: key of the quantity that `loss` is of.
        loss: relative; the spread is its standard error over evaluation seeds.
        images: for each of `seeds` evaluation seeds.
    """

    found: Numbers
    reference: Numbers
    best_full: Numbers
    speedup: float
    objective: str
    loss: Spread
    pictures: int
    seeds: int
    dtype: str
    commit: str
    date: str
    machine: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Settings for one base model.

    Attributes:
        fingerprint: of the base model's weights.
        accelerated_fingerprint: of the weights and settings with every accelerator in place.
        measured: None for settings that a person chose by eye.
    """

    model: str
    fingerprint: str
    accelerated_fingerprint: str
    settings: Settings
    measured: Measured | None


def preset_text(preset: Preset) -> str:
    """The preset as JSON."""
    return json.dumps({"kind": _KIND, "version": VERSION, **asdict(preset)}, indent=2) + "\n"


def write_preset(preset: Preset, path: Path) -> None:
    """The preset as JSON, whole or not at all."""
    write_text(path, preset_text(preset))


def read_preset(path: str | Path) -> Preset:
    """A written preset.

    Errors: FileNotFoundError; ValueError if it is something else, damaged, or of another version.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such preset: {path} (`swiftmask tune MODEL --speedup 2` writes one)")
    content = read_json(path)
    if content.pop("kind", None) != _KIND:
        raise ValueError(f"{path} is no preset: expected what `swiftmask tune` or `swiftmask studio` writes")
    version = content.pop("version", None)
    if version != VERSION:
        raise ValueError(
            f"{path} is a preset of version {version}, this swiftmask reads version {VERSION}: run "
            "`swiftmask tune` again"
        )
    return record_of(Preset, content, source=str(path))


def _listed(indices: tuple[int, ...]) -> str:
    return " ".join(map(str, indices))
