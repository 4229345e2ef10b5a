"""Data sources: images with a condition, by index, read lazily.

A trainer, a cache and a benchmark read any source: a folder (folder.py), a Hugging Face dataset (hub.py), or
Scenes (scenes.py). `open_source` tells which one a setting means.
"""

from swiftmask.data.sources.folder import notice_in
from swiftmask.data.sources.opening import DataConfig, open_source
from swiftmask.data.sources.source import (
    Classes,
    Source,
    asked_of_captions,
    held_out,
    labels_of,
    require_captions,
)

__all__ = [
    "Classes",
    "DataConfig",
    "Source",
    "asked_of_captions",
    "held_out",
    "labels_of",
    "notice_in",
    "open_source",
    "require_captions",
]
