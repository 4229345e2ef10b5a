"""Which files of a folder are images, and which are passed over."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Self

from PIL import Image

_UNREAD = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
"""What Pillow knows by name, but does not read by itself."""

_BESIDE = (
    ".csv .db .html .ini .json .jsonl .lock .log .md .ndjson .npy .npz .parquet .py .safetensors .sha256 "
    ".toml .tsv .txt .xml .yaml .yml"
).split()
"""Suffixes of what lies beside images and is none: not worth a word."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Files that may be images and are not read, as paths below their folder."""

    files: tuple[str, ...] = ()

    def said(self, root: Path) -> list[str]:
        """One sentence, or none if there is nothing to say."""
        if not self.files:
            return []
        kinds = Counter(PurePosixPath(file).suffix.lower() or "without a suffix" for file in self.files)
        numbers = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        named = ", ".join(self.files[:3]) + (", ..." if len(self.files) > 3 else "")
        plural, verb = ("s", "were") if len(self.files) > 1 else ("", "was")
        return [
            f"{len(self.files)} file{plural} in {root} {verb} passed over, not of a format that is read "
            f"({numbers}): {named}"
        ]


@dataclass(frozen=True, slots=True)
class Listing:
    """The images below a folder, sorted by path, and what is none of them."""

    files: tuple[str, ...]
    passed_over: PassedOver

    @classmethod
    def below(cls, root: Path, *, but: Iterable[str] = ()) -> Self:
        """List a folder and its subfolders, without names that start with a dot and those in `but`."""
        names = [name for name in _shown_below(root) if PurePosixPath(name).name not in but]
        suffixes = {name: PurePosixPath(name).suffix.lower() for name in names}
        files = sorted(name for name in names if suffixes[name] in image_suffixes())
        others = sorted(set(names) - set(files))
        return cls(tuple(files), PassedOver(tuple(n for n in others if suffixes[n] not in _BESIDE)))


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes in lower case of the formats that Pillow reads, with what was registered with it."""
    kinds = Image.registered_extensions()
    readable = ({*Image.OPEN} | {"MPO"}) - _UNREAD
    return frozenset(suffix for suffix, kind in kinds.items() if kind in readable)


def _shown_below(folder: Path) -> Iterator[str]:
    for place, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = filter(is_shown, subfolders)
        below = Path(place).relative_to(folder)
        yield from ((below / name).as_posix() for name in names if is_shown(name))


def is_shown(name: str) -> bool:
    return not name.startswith(".")
