"""The files of a shard: a folder of PNG files, a WebDataset tar, or a Parquet file.

The bytes depend on the images and their columns alone: no dates, no names of machines. Hugging Face
`datasets` and `data=` of `swiftmask train` read them.
"""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from swiftmask.core.optional import library

Columns = Mapping[str, str | int]
Kind = Literal["folder", "webdataset", "parquet"]

METADATA = "metadata.jsonl"
_CAPTIONS = ("text", "label")


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a shard.

    Attributes:
        index: of the image among all images of the run.
        columns: what is known of it, such as its prompt ("text") or class ("label") and its seed.
        png: the encoded image.
    """

    index: int
    columns: Columns
    png: bytes

    @property
    def key(self) -> str:
        """The name without a suffix; names sort as indices do."""
        return f"{self.index:09d}"


@dataclass(frozen=True, slots=True)
class Written:
    """What a written shard is known by: a size in bytes, and a digest (SHA-256) of the bytes."""

    num_bytes: int
    sha256: str


def write_folder(path: Path, entries: Iterable[Entry]) -> None:
    """PNG files and `metadata.jsonl`, in the layout of Hugging Face's imagefolder."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    lines = []
    for entry in entries:
        (path / f"{entry.key}.png").write_bytes(entry.png)
        lines.append(json.dumps({"file_name": f"{entry.key}.png", **entry.columns}, ensure_ascii=False))
    (path / METADATA).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_webdataset(path: Path, entries: Iterable[Entry]) -> None:
    """A tar with KEY.png, KEY.txt (prompt or class) and KEY.json (all columns) of each image."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for entry in entries:
            caption = next((str(entry.columns[name]) for name in _CAPTIONS if name in entry.columns), "")
            columns = json.dumps(dict(entry.columns), ensure_ascii=False)
            files = {"png": entry.png, "txt": caption.encode(), "json": columns.encode()}
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{entry.key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def read_webdataset(path: Path) -> Iterator[Entry]:
    """What `write_webdataset` wrote. Errors: tarfile.TarError or KeyError for another or a damaged file."""
    with tarfile.open(path) as tar:
        found: dict[str, bytes] = {}
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            key, _, suffix = member.name.partition(".")
            found[suffix] = file.read()
            if suffix == "json":  # the last of an image
                yield Entry(int(key), json.loads(found["json"]), found["png"])
                found = {}


def write_parquet(path: Path, entries: Iterable[Entry]) -> None:
    """Columns `key`, `image` (bytes and path, as `datasets` keeps images) and those of the images.

    Errors: ValueError if pyarrow is not installed.
    """
    arrow = _arrow()
    from pyarrow import parquet

    rows = [
        {"key": entry.key, "image": {"bytes": entry.png, "path": f"{entry.key}.png"}, **entry.columns}
        for entry in entries
    ]
    table = arrow.Table.from_pylist(rows)
    kinds = {"string": "string", "int64": "int64"}
    features: dict[str, Any] = {
        column.name: {"_type": "Image"}
        if column.name == "image"
        else {"_type": "Value", "dtype": kinds[str(column.type)]}
        for column in table.schema
    }
    told = json.dumps({"info": {"features": features}})
    parquet.write_table(table.replace_schema_metadata({"huggingface": told}), path)


@dataclass(frozen=True, slots=True)
class ShardKind:
    """How shards of one kind are named and written.

    Attributes:
        suffix: of the name.
        write: `write(path, entries)`.
        require: complains about a library that is not installed.
    """

    suffix: str
    write: Callable[[Path, Iterable[Entry]], None]
    require: Callable[[], object] = lambda: None


def _arrow() -> Any:
    return library("pyarrow", "a Parquet file")


KINDS: dict[Kind, ShardKind] = {
    "folder": ShardKind("", write_folder),
    "webdataset": ShardKind(".tar", write_webdataset),
    "parquet": ShardKind(".parquet", write_parquet, _arrow),
}


def written(path: Path) -> Written | None:
    """Size and digest of a shard, a file or a folder; None if it is not there."""
    if path.is_file():
        with path.open("rb") as file:
            return Written(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    if not path.is_dir():
        return None
    digest, num_bytes = hashlib.sha256(), 0
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode())
        digest.update(content)
        num_bytes += len(content)
    return Written(num_bytes, digest.hexdigest())
