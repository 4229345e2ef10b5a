"""Files written whole or not at all: under another name first, which then takes the place of the old file.

A process that is killed leaves its partial file. Whoever locks the folder next removes it, or, where no lock
is held, whoever writes that file next.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from errno import ENOSPC
from glob import escape
from pathlib import Path
from stat import S_IMODE

_PARTIAL = re.compile(r"\..+\.(\d+)\.partial")
_UNNAMED = re.compile(r"\.tmp\w{6}")
_DEEPEST = 3
"""Folders below one of ours or of a released model."""

LOCK = ".lock"
"""In the folder of a run (training/lock.py)."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the file to write in place of `path`; it becomes `path` if that ends without an error.

    Each process has its own, so that two may write one `path`: the last one stays. Folders are made, and the
    file may be read by whom the umask lets read: safetensors writes for its owner alone.

    Errors: OSError naming `path` if the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with full_disk_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
            mode = S_IMODE(partial.stat().st_mode)
            yield partial
            partial.chmod(mode)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Errors: OSError naming `path` if the disk is full while something is written to it."""
    try:
        yield
    except Exception as error:  # of whatever library wrote: safetensors has its own
        if _is_full(error):
            raise OSError(ENOSPC, os.strerror(ENOSPC), str(path)) from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """As `written_whole`, and remove what killed processes left of this file."""
    remove_partials_of(path)
    with written_whole(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """As `written_whole`, in UTF-8 with the line ends of `text`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """As `written_whole`, indented."""
    write_text(path, json.dumps(dict(content), indent=2) + "\n")


def remove_partials(folder: Path) -> None:
    """Remove what killed processes left in `folder` and a few folders below; its lock keeps others from
    writing there. Folders below that have a lock are those of other runs.

    What safetensors was writing has a name of its own, and is known by its header.
    """
    for path in files_below(folder, but=lambda below: (below / LOCK).exists()):
        if _PARTIAL.fullmatch(path.name) or (_UNNAMED.fullmatch(path.name) and _is_safetensors(path)):
            path.unlink(missing_ok=True)


def files_below(folder: Path, *, but: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """Files, links and what else is no folder, in `folder` and at most three folders below, as they are
    found; no links to folders are followed.

    Args:
        but: folders that are left out.
    """
    for place, subfolders, names in os.walk(folder):
        here = Path(place)
        deepest = len(here.relative_to(folder).parts) == _DEEPEST
        subfolders[:] = [] if deepest else [name for name in subfolders if not but(here / name)]
        yield from (here / name for name in names)


def remove_partials_of(path: Path) -> None:
    """Remove what processes of this machine that are no more left of one file, where no lock is held."""
    for left in path.parent.glob(f".{escape(path.name)}.*.partial"):
        found = _PARTIAL.fullmatch(left.name)
        if found and not _is_alive(int(found[1])):
            left.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where signal 0 ends a process
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


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


def missing_folders(folder: Path) -> list[Path]:
    """A folder and those above it that are not there yet, the deepest first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders, the deepest first, until one is not empty."""
    with suppress(OSError):  # others may have come meanwhile
        for folder in folders:
            folder.rmdir()
