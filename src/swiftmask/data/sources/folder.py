"""A folder of images as a data source.

Classes come from subfolders or from columns of the metadata. Captions come from `metadata.jsonl` or
`metadata.csv` in the layout of Hugging Face's imagefolder (columns `file_name` and `text`, or `caption`, and
optionally `captions`, `split` and `licence`), or from `NAME.txt` beside `NAME.png`.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from swiftmask.core.settings import parse_json, read_json, read_text
from swiftmask.data.images.cropping import read_cropped
from swiftmask.data.images.decode import Decoding, counted, said
from swiftmask.data.images.listing import Listing
from swiftmask.data.sources.source import Classes

METADATA = ("metadata.jsonl", "metadata.csv")
NOTICES = ("NOTICE.md", "NOTICE.txt", "NOTICE")
"""Files beside the images that say who made them, the first one that is there."""

_CAPTIONS = ("text", "caption", "prompt")
"""Names of a caption's column, the first one that is there."""

_RESERVED = ("file_name", *_CAPTIONS, "captions", "split", "licence")

Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Images below a folder, sorted by path.

    Attributes:
        class_columns: of the metadata; empty takes the subfolders.
    """

    root: Path
    decoding: Decoding = Decoding()
    class_columns: tuple[str, ...] = ()
    _changes: dict[int, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise FileNotFoundError(f"no such image folder: {self.root}")
        if not self._listing.files:
            others = "".join(f"; {line}" for line in self._listing.passed_over.said(self.root))
            raise ValueError(f"no images found in {self.root} (formats that Pillow reads){others}")
        self._check_metadata()

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @property
    def identity(self) -> str:
        return self.decoding.identity

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Paths below the folder: those of the metadata, or all images without one."""
        return tuple(sorted(self._rows)) if self._rows else self._listing.files

    @cached_property
    def classes(self) -> Classes | None:
        if self.class_columns:
            return Classes.of_columns(list(zip(*map(self.column, self.class_columns), strict=True)))
        parents = [PurePosixPath(key).parts[:-1] for key in self.keys]
        return Classes.of_columns([parts[:1] for parts in parents]) if all(parents) else None

    @cached_property
    def splits(self) -> tuple[str, ...]:
        found = [str(self._rows.get(key, {}).get("split", "")) for key in self.keys]
        return tuple(found) if any(found) else ()

    @cached_property
    def licence(self) -> str:
        found = {str(row["licence"]) for row in self._rows.values() if row.get("licence")}
        return ", ".join(sorted(found))

    @property
    def notice(self) -> str:
        return notice_in(self.root)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Columns that are text or a number in every line; those with a meaning of their own aside."""
        names = dict.fromkeys(name for row in self._rows.values() for name in row)
        rows = [self._rows[key] for key in self.keys] if self._rows else []
        return tuple(
            name for name in names if name not in _RESERVED and all(_is_plain(row.get(name)) for row in rows)
        )

    @property
    def facts(self) -> dict[str, object]:
        """The hash of its pixels, if `swiftmask data` wrote the folder; others have a `dataset.json`, too."""
        try:
            sha256 = read_json(self.root / "dataset.json").get("pixels_sha256")
        except (ValueError, OSError):
            return {}
        return {"pixels_sha256": sha256} if isinstance(sha256, str) else {}

    def read(self, index: int, size: int) -> Tensor:
        path = self.root / self.keys[index]
        cropped = read_cropped(path.read_bytes(), str(path), size, self.decoding)
        if cropped.changes:
            self._changes[index] = cropped.changes
        return cropped.pixels_3HW

    def stamp(self, index: int) -> str:
        status = (self.root / self.keys[index]).stat()
        return f"{status.st_size}-{status.st_mtime_ns}"

    def captions(self, index: int) -> tuple[str, ...]:
        key = self.keys[index]
        row = self._rows.get(key)
        if row is not None:
            first = next((row[name] for name in _CAPTIONS if row.get(name)), None)
            others = row.get("captions") or ()
            return tuple(dict.fromkeys(str(text) for text in (first, *others) if text))
        path = (self.root / key).with_suffix(".txt")
        if not path.is_file():
            return ()
        text = path.read_text(encoding="utf-8-sig").strip()
        return (" ".join(text.split()),) if text else ()

    def column(self, name: str) -> tuple[str, ...]:
        lacking = [key for key in self.keys if not _is_plain(self._rows.get(key, {}).get(name))]
        if lacking:
            known = sorted({name for row in self._rows.values() for name in row})
            raise ValueError(
                f"{len(lacking)} images of {self.root} have no {name!r} in the metadata (first "
                f"{lacking[0]}); its columns are {', '.join(known) or 'none: there is no metadata'}"
            )
        return tuple(str(self._rows[key][name]) for key in self.keys)

    def notices(self) -> list[str]:
        lines = list(self._listing.passed_over.said(self.root))
        unnamed = len(self._listing.files) - len(self.keys)
        if unnamed > 0:
            lines.append(f"{unnamed} images in {self.root} are not in its metadata and were passed over")
        return [*lines, *said(counted([*self._changes.values()]), len(self.keys), self.decoding)]

    @cached_property
    def _listing(self) -> Listing:
        return Listing.below(self.root)

    @cached_property
    def _rows(self) -> dict[str, Row]:
        """Lines of the metadata by file name; empty without metadata."""
        path = next((self.root / name for name in METADATA if (self.root / name).is_file()), None)
        if path is None:
            return {}
        text = path.read_text(encoding="utf-8-sig")
        rows = list(_json_rows(text, path) if path.suffix == ".jsonl" else csv.DictReader(io.StringIO(text)))
        if not rows or not all(row.get("file_name") for row in rows):
            raise ValueError(f"{path} must have a column file_name in every line")
        twice = [name for name, n in Counter(str(row["file_name"]) for row in rows).items() if n > 1]
        if twice:
            raise ValueError(f"{path} names {twice[0]} more than once")
        return {str(row["file_name"]): row for row in rows}

    def _check_metadata(self) -> None:
        """Errors: ValueError for lines without an image, and for columns that are not there."""
        missing = sorted(set(self._rows) - set(self._listing.files))
        if missing:
            named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise ValueError(f"{len(missing)} files of the metadata in {self.root} are not there: {named}")
        for column in self.class_columns:
            self.column(column)


def notice_in(folder: Path) -> str:
    """The text of the notice in a folder of images or of weights; empty without one."""
    path = next((folder / name for name in NOTICES if (folder / name).is_file()), None)
    return "" if path is None else read_text(path, expected="expected a notice")


def _is_plain(value: object) -> bool:
    """Whether a cell names something: text that is not empty, or a number."""
    return isinstance(value, int | float) or (isinstance(value, str) and bool(value.strip()))


def _json_rows(text: str, path: Path) -> Sequence[Row]:
    lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [parse_json(line, source=f"{path}, line {number}") for number, line in lines]
