"""What an image knows of itself: the settings it was generated with, as a text chunk of its PNG file."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from PIL.PngImagePlugin import PngInfo

from swiftmask.core.types import Schedule
from swiftmask.evaluate.fingerprints import stated_settings
from swiftmask.pipeline import Pipeline

STAMP = "swiftmask"
"""The text chunk."""


def stamped_settings(pipeline: Pipeline, schedule: Schedule, given: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides an image besides its class or prompt and its seed.

    Args:
        given: what the pipeline does not tell, such as the image it starts from; None says nothing.
    """
    return {
        "model": pipeline.name,
        "weights": _fingerprint(pipeline),
        "steps": pipeline.steps,
        "full_steps": [step.index for step in schedule if step.full],
        "accelerator": None if pipeline.features_fn is None else pipeline.features_fn.name,
        "sampling": asdict(pipeline.sampling),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        **{name: value for name, value in given.items() if value is not None},
    }


def stamp_text(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The chunk's text: the settings, and class or prompt and seed of this image."""
    return json.dumps({**settings, **facts}, sort_keys=True)


def png_info(stamp: str) -> PngInfo:
    """What `Image.save(pnginfo=...)` takes."""
    info = PngInfo()
    info.add_text(STAMP, stamp)
    return info


def content_mark(name: str, content: bytes) -> str:
    """A file as images remember it: changed contents count as another file."""
    return f"{name} {zlib.crc32(content):08x}"


def _fingerprint(pipeline: Pipeline) -> str:
    """A checksum over settings and a sample of every weight: a retrained model counts as another one."""
    checksum = zlib.crc32(stated_settings(pipeline.model, pipeline.features_fn).encode())
    for part in (pipeline.model, pipeline.features_fn):
        for parameter in part.parameters() if isinstance(part, torch.nn.Module) else ():
            checksum = zlib.crc32(
                parameter.detach().flatten()[:256].float().cpu().numpy().tobytes(), checksum
            )
    return f"{checksum:08x}"
