"""Files written whole or not at all: under another name first, which then takes the place of the old file.

A process that is killed leaves its partial file; whoever locks the folder next removes it.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import ENOSPC
from pathlib import Path

_PARTIAL = re.compile(r"\..+\.\d+\.partial")
_UNNAMED = re.compile(r"\.tmp\w{6}")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the file to write in place of `path`; it becomes `path` if that ends without an error.

    Each process has its own, so that two may write one `path`: the last one stays. Folders are made.

    Errors: OSError naming `path` if the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
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
    """Remove what killed processes left in `folder` and below; its lock keeps others from writing there.

    What safetensors was writing has a name of its own, and is known by its header.
    """
    for left in folder.rglob(".*"):
        if _PARTIAL.fullmatch(left.name) or (_UNNAMED.fullmatch(left.name) and _is_safetensors(left)):
            left.unlink(missing_ok=True)


def _is_safetensors(path: Path) -> bool:
    """Whether a JSON object follows eight bytes; a file that was just begun may be empty."""
    with path.open("rb") as file:
        start = file.read(9)
    return not start or start[8:] == b"{"


def _is_full(error: Exception) -> bool:
    """safetensors and Pillow say it in words alone."""
    return (
        getattr(error, "errno", None) == ENOSPC
        or "No space left" in str(error)
        or "os error 28" in str(error)
    )
