"""Files written whole or not at all: under another name first, which then takes the place of the old file.

A process that is killed leaves its partial file; whoever locks the folder next removes it.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path

_SUFFIX = ".partial"
_UNFINISHED_TENSORS = ".tmp??????"
"""How safetensors calls a file that it writes, before it renames it to the partial one."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the file to write in place of `path`; it becomes `path` if that ends without an error.

    Each process has its own, so that two may write one `path`: the last one stays. Folders are made.

    Errors: OSError naming `path` if the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except Exception as error:  # of whatever library wrote: safetensors has its own
        if _is_full(error):
            raise OSError(ENOSPC, os.strerror(ENOSPC), str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """As `written_whole`."""
    with written_whole(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """As `written_whole`, in UTF-8 with the line ends of `text`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """As `written_whole`, indented."""
    write_text(path, json.dumps(dict(content), indent=2) + "\n")


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left in `folder`, while its lock keeps others from writing there."""
    for pattern in (f".*{_SUFFIX}", _UNFINISHED_TENSORS):
        for left in folder.glob(pattern):
            if left.is_file():
                left.unlink(missing_ok=True)


def _is_full(error: Exception) -> bool:
    """safetensors and Pillow say it in words alone."""
    return (
        getattr(error, "errno", None) == ENOSPC
        or "No space left" in str(error)
        or "os error 28" in str(error)
    )
