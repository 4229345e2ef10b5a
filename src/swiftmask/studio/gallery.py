"""What a session generated: files for download, each image with its settings, and presets to use again."""

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from threading import Lock
from typing import Any

from PIL import Image

from swiftmask.cli.jobs import Job
from swiftmask.data.images import Decoding
from swiftmask.evaluate.fingerprints import weights_fingerprint
from swiftmask.evaluate.presets import Preset, preset_text
from swiftmask.serve.catalogue import Catalogue
from swiftmask.stamps import content_mark, png_info, stamp_text, stamped_settings
from swiftmask.studio.code import MASK, START
from swiftmask.studio.live import Side
from swiftmask.studio.session import PRESET, Knobs, short_name, steps_text

_MOST_BYTES = 256 * 2**20
"""Of the files that a server keeps for downloads; the oldest go first."""


@dataclass(slots=True)
class Files:
    """Files for download, in memory, under names that nobody guesses."""

    _kept: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    _num_bytes: int = 0
    _lock: Lock = field(default_factory=Lock)

    def add(self, content: bytes, ending: str) -> str:
        """Keep a file. Returns the name it is found under."""
        name = f"{secrets.token_urlsafe(16)}.{ending}"
        with self._lock:
            self._kept[name] = content
            self._num_bytes += len(content)
            while self._num_bytes > _MOST_BYTES and len(self._kept) > 1:
                self._num_bytes -= len(self._kept.popitem(last=False)[1])
        return name

    def find(self, name: str) -> bytes | None:
        """A file's content; None for a name that is unknown or was dropped."""
        with self._lock:
            return self._kept.get(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryImage:
    """One finished image.

    Attributes:
        file: where `Files` has it.
        file_name: what a download is called.
    """

    file: str
    file_name: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one click gave.

    Attributes:
        name: of the accelerated model.
        settings: what was chosen, for a reader.
        full, fast: images of the full and the accelerated model, in the same order.
        steps, gflop, seconds: of an image of the two.
        preset: file of the accelerated model's settings.
    """

    title: str
    name: str
    settings: str
    full: tuple[GalleryImage, ...]
    fast: tuple[GalleryImage, ...]
    steps: tuple[str, str]
    gflop: tuple[float, float]
    seconds: tuple[float, float]
    preset: str
    preset_name: str


def entry_of(sides: Sequence[Side], knobs: Knobs, catalogue: Catalogue, files: Files) -> Entry:
    """What a click gave, with its files. Both sides are finished."""
    full, fast = sides
    name = short_name(knobs.variant, catalogue.base.name)
    preset = preset_of(fast, catalogue)
    return Entry(
        title=", ".join(knobs.what),
        name=name,
        settings=_settings_text(knobs),
        full=images_of(full, knobs, files),
        fast=images_of(fast, knobs, files),
        steps=(steps_text(full.full), steps_text(fast.full)),
        gflop=(sum(full.flops) / 1e9, sum(fast.flops) / 1e9),
        seconds=(full.seconds, fast.seconds),
        preset=files.add(preset.encode(), "json"),
        preset_name=f"{catalogue.base.name}-{name}.json".replace(":", "-").replace("+", "-"),
    )


def _settings_text(knobs: Knobs) -> str:
    seeds = f"seeds {knobs.seed} to {knobs.seed + knobs.num_images - 1}"
    parts = [seeds if knobs.num_images > 1 else f"seed {knobs.seed}"]
    parts += [f"{name.replace('_', ' ')} {value:g}" for name, value in knobs.sampling.items()]
    parts += [f"without: {knobs.negative_prompt}"] if knobs.negative_prompt else []
    parts += [f"size {knobs.size}"] if knobs.size else []
    parts += ["from an image, part of it generated anew"] if knobs.image is not None else []
    return ", ".join(parts)


def images_of(side: Side, knobs: Knobs, files: Files) -> tuple[GalleryImage, ...]:
    """The finished images of a side as PNG files, with the settings that `swiftmask generate` writes."""
    pipeline = side.prepared.job.pipeline
    settings = stamped_settings(pipeline, side.prepared.schedule, _given(side, knobs))
    pictures = []
    for row, seed, image in zip(side.prepared.job.rows, side.seeds, side.images, strict=True):
        assert image is not None
        job = Job(getattr(row.what, "text", str(row.what)), seed, knobs.negative_prompt)
        content = png_bytes(image, stamp_text(settings, job.facts()))
        caption = f"{job.what}, seed {seed}"
        pictures.append(
            GalleryImage(file=files.add(content, "png"), file_name=job.file_name, caption=caption)
        )
    return tuple(pictures)


def _given(side: Side, knobs: Knobs) -> dict[str, Any]:
    """Of a stamp: what the pipeline does not tell."""
    variant = side.prepared.variant
    given: dict[str, Any] = {}
    if PRESET not in variant.name:
        given = {"marval": variant.settings.marval, "speed_rl": variant.settings.speed_rl}
    if knobs.size is not None:
        given["size"] = list(side.prepared.variant.size)
    if knobs.image is not None:
        given["init_image"] = content_mark(START, png_bytes(knobs.image))
        given["mask"] = None if knobs.mask is None else content_mark(MASK, png_bytes(knobs.mask))
        given |= {"decoding": Decoding().identity, "kept_pixels": "pasted"}
    return given


def png_bytes(image: Image.Image, stamp: str | None = None) -> bytes:
    """An image as a PNG file."""
    file = BytesIO()
    image.save(file, format="PNG", pnginfo=None if stamp is None else png_info(stamp))
    return file.getvalue()


def preset_of(side: Side, catalogue: Catalogue) -> str:
    """The settings of a decode as a preset, which nobody measured."""
    pipeline, variant = side.prepared.job.pipeline, side.prepared.variant
    full_steps = pipeline.full_steps
    if pipeline.features_fn is None:
        full_steps = None
    elif not isinstance(full_steps, tuple):
        full_steps = sum(side.full)
    settings = replace(
        variant.settings,
        steps=pipeline.steps,
        full_steps=full_steps,
        size=variant.settings.size if variant.size == catalogue.base.image_size() else variant.size,
        sampling=pipeline.sampling,
    )
    preset = Preset(
        model=catalogue.base.name,
        fingerprint=weights_fingerprint(catalogue.base.model),
        accelerated_fingerprint=variant.fingerprint,
        settings=settings,
        measured=None,
    )
    return preset_text(preset)
