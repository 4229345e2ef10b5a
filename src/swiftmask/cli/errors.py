"""One clear line instead of a traceback."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from swiftmask.cli.checks import check_command
from swiftmask.cli.words import check_words, complaint

USER_MISTAKES = (ValueError, OSError, FloatingPointError)
"""What our own functions raise for a wrong name, number or file, a full disk, or weights or a dtype that give
NaN.
"""

CommandClass = TypeVar("CommandClass")
_LEFT_OUT = {"--shortcut": "auto", "--marval": "auto", "--speed-rl": "auto", "--compile": "default"}
"""Options whose value may be left out, in every command that has them, and the value that is then meant."""


def run_safely(start: Callable[[], int], *, debug: bool) -> int:
    """The exit code: the command's own, 2 for a user's mistake, 130 for Ctrl-C, 1 for a defect of ours."""
    try:
        return start()
    except KeyboardInterrupt as stop:
        hint = f": {stop}" if str(stop) else ""
        sys.stderr.write(f"\nswiftmask: interrupted{hint}\n")
        return 130
    except BrokenPipeError:
        # The reader (`| head`) is gone; the interpreter must not try to flush what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        mistake = isinstance(error, USER_MISTAKES) or "No space left" in str(error)
        sys.stderr.write(f"swiftmask: {'' if mistake else type(error).__name__ + ': '}{one_line(error)}\n")
        if not mistake and not debug:
            sys.stderr.write("swiftmask: SWIFTMASK_DEBUG=1 shows where\n")
        return 2 if mistake else 1


def one_line(error: Exception) -> str:
    """The message on one line; an OSError says which file."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror[0].lower()}{error.strerror[1:]}" + (
            f": {error.filename}" if error.filename else ""
        )
    return " ".join(str(error).split()) or type(error).__name__


def parse(
    command_class: type[CommandClass], args: Sequence[str], *, prog: str, more: str = ""
) -> CommandClass:
    """Options to the command's dataclass. A mistake is one line on stderr, with a suggestion; exit code 2.

    Args:
        more: what follows the help.

    Errors: as `check_words` and `check_command`.
    """
    import tyro

    words, said = with_left_out(args), io.StringIO()
    check_words(command_class, words)
    options: tuple[Any, ...] = (tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff)
    try:
        with contextlib.redirect_stderr(said):
            command = tyro.cli(command_class, args=words, prog=prog, config=options)
    except SystemExit as stop:
        if stop.code in (0, None):
            sys.stdout.write(more)
            raise
        sys.stderr.write(f"{prog}: {complaint(command_class, words, said.getvalue())}; see {prog} --help\n")
        raise SystemExit(2) from None
    check_command(command)
    return command


def with_left_out(args: Sequence[str]) -> list[str]:
    """The arguments, with values filled in that were left out: `--shortcut` is the model's own."""
    filled = []
    for place, arg in enumerate(args):
        filled.append(arg)
        named = place + 1 < len(args) and not args[place + 1].startswith("--")
        if arg in _LEFT_OUT and not named:
            filled.append(_LEFT_OUT[arg])
    return filled
