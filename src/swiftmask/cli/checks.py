"""Checks of every command's options before it runs: numbers, where it writes, accelerators."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from swiftmask.core.ranges import check_fields

_ACCELERATORS = {"shortcut": "shortcut", "marval": "MARVAL student", "speed_rl": "Speed-RL result"}
"""Options that name an accelerator, and what they name."""


def option(field: str) -> str:
    """What a command's field is called on the command line."""
    return f"--{field.replace('_', '-')}"


def check_command(command: Any) -> None:
    """Errors: ValueError or FileNotFoundError naming the option, or what it was given."""
    _check_out(command)
    for part in (command, *(getattr(command, field.name) for field in fields(command))):
        if not is_dataclass(part):
            continue
        check_fields(part, option)
        for field, what in _ACCELERATORS.items():
            given = getattr(part, field, None)
            for source in (given,) if isinstance(given, str) else given or ():
                _check_accelerator(source, what)


def _check_out(command: Any) -> None:
    """Errors: ValueError if --out cannot be made, because of what is in its place or above it."""
    out: Path | None = getattr(command, "out", None)
    there = out and next((path for path in (out, *out.parents) if path.exists()), None)
    if not there:
        return
    folder = there != out or not getattr(command, "out_is_file", False)
    if there.is_dir() != folder:
        mend = "is a file: name a folder" if folder else "is a folder: name a file"
        raise ValueError(f"--out {out}: {there} {mend}")


def _check_accelerator(source: str, what: str) -> None:
    """Errors: ValueError or FileNotFoundError unless there is something of that name."""
    if source not in ("auto", "none"):
        from swiftmask.api import find_method

        find_method(source, what)
