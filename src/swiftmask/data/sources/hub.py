"""What Hugging Face `datasets` opens, as a data source: Parquet, Arrow, WebDataset tars, datasets of the hub.

`datasets` keeps its tables on disk and maps them into memory; images are decoded one by one when they are
read.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from swiftmask.core.optional import library
from swiftmask.core.settings import first_line
from swiftmask.data.images.cropping import read_cropped
from swiftmask.data.images.decode import Decoding, counted, said
from swiftmask.data.sources.source import Classes

_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
_CAPTIONS = ("text", "caption", "prompt", "txt")
_LABELS = ("label", "labels", "cls", "class")
_LOADERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}


@dataclass(frozen=True, eq=False)
class HubSource:
    """Rows of a table whose image column holds encoded files; captions and labels are optional columns."""

    name: str
    table: Any
    columns: dict[str, str]
    decoding: Decoding
    class_columns: tuple[str, ...] = ()
    licence: str = ""
    splits: tuple[str, ...] = ()
    _changes: dict[int, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False)

    @property
    def identity(self) -> str:
        return f"{getattr(self.table, '_fingerprint', self.name)}, {self.decoding.identity}"

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The sample's own key in a WebDataset, else its place."""
        if "__key__" in self.table.column_names:
            return tuple(map(str, self.table["__key__"]))
        return tuple(f"{i:09d}" for i in range(len(self.table)))

    @cached_property
    def classes(self) -> Classes | None:
        names = self.class_columns or ((self.columns["label"],) if "label" in self.columns else ())
        if not names:
            return None
        return Classes.of_columns(list(zip(*map(self.column, names), strict=True)))

    @property
    def notice(self) -> str:
        return ""

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Columns of text, of whole numbers and of labels."""
        kinds = {name: getattr(feature, "dtype", "") for name, feature in self.table.features.items()}
        others = [name for name in kinds if name not in (self.columns["image"], self.columns.get("caption"))]
        return tuple(
            name for name in others if str(kinds[name]).startswith(("string", "int", "large_string"))
        )

    @property
    def facts(self) -> dict[str, object]:
        return {}

    def read(self, index: int, size: int) -> Tensor:
        cell = self.table[index][self.columns["image"]]
        content = cell["bytes"] if isinstance(cell, dict) else cell
        if content is None:
            content = Path(cell["path"]).read_bytes()
        cropped = read_cropped(content, f"{self.name}, image {self.keys[index]}", size, self.decoding)
        if cropped.changes:
            self._changes[index] = cropped.changes
        return cropped.pixels_3HW

    def stamp(self, index: int) -> str:
        return ""

    def captions(self, index: int) -> tuple[str, ...]:
        if "caption" not in self.columns:
            return ()
        found = self._captions[index]
        if isinstance(found, bytes):
            found = found.decode("utf-8", "replace")
        texts = found if isinstance(found, list | tuple) else [found]
        return tuple(str(text) for text in texts if text)

    def column(self, name: str) -> tuple[str, ...]:
        """Those of a ClassLabel are in its own words."""
        if name not in self.table.column_names:
            raise ValueError(
                f"{self.name} has no column {name!r}: there is {', '.join(self.table.column_names)}"
            )
        feature, values = self.table.features[name], self.table[name]
        lacking = sum(value is None or value == "" for value in values)
        if lacking:
            raise ValueError(f"{lacking} images of {self.name} have no {name!r}")
        return tuple(feature.int2str(v) if hasattr(feature, "int2str") else str(v) for v in values)

    def notices(self) -> list[str]:
        return said(counted([*self._changes.values()]), len(self.keys), self.decoding)

    @cached_property
    def _captions(self) -> Any:
        return self.table[self.columns["caption"]]


def open_dataset(source: str, split: str, decoding: Decoding, class_columns: tuple[str, ...]) -> HubSource:
    """A dataset of the hub by its name, or local Parquet, Arrow or tar files.

    Errors: ValueError if `datasets` is not installed or cannot open it, and without an image column.
    """
    datasets = library("datasets", "a data source that is not a folder")
    path = Path(source).expanduser()
    try:
        if path.exists():
            files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in _LOADERS)
            loader = _LOADERS[files[0].suffix]
            table = datasets.load_dataset(loader, data_files=[str(f) for f in files], split="train")
        else:
            table = datasets.load_dataset(source, split=split)
    except Exception as error:  # datasets raises what its many readers raise
        raise ValueError(f"cannot open the dataset {source} ({first_line(error)})") from error
    columns = {}
    for kind, names in (("image", _IMAGES), ("caption", _CAPTIONS), ("label", _LABELS)):
        found = next((name for name in names if name in table.column_names), None)
        if found is not None:
            columns[kind] = found
    unknown = [name for name in class_columns if name not in table.column_names]
    if "image" not in columns or unknown:
        what = f"no column {unknown[0]}" if unknown else f"no image column ({', '.join(_IMAGES)})"
        raise ValueError(f"the dataset {source} has {what}: its columns are {', '.join(table.column_names)}")
    if isinstance(table.features[columns["image"]], datasets.Image):
        table = table.cast_column(columns["image"], datasets.Image(decode=False))
    licence = getattr(table.info, "license", "") or ""
    return HubSource(path.name if path.exists() else source, table, columns, decoding, class_columns, licence)
