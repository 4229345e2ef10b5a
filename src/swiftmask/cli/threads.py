"""The CPU threads of a command: `--threads`, and a note where other jobs already use the cores.

torch starts as many threads as there are cores. Beside one busy job they wait for each other at every
operator: 14 s an image with two threads on two cores, 0.34 s with one (maskgit-scenes, 2026-11-29).
"""

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from swiftmask.cli.progress import note

HELP = "--threads N: CPU threads to compute with (default: one per core)\n"
"""The option of every command that computes, below its own in --help."""

_FLAG = "--threads"
_LOAD = Path("/proc/loadavg")
_SECONDS_UNTIL_SAID = 3.0
"""What is wrong with a command is said sooner, on one line that nothing else is beside."""


def without_threads(args: Sequence[str]) -> tuple[list[str], int | None]:
    """The arguments without `--threads`, and its number. Errors: ValueError unless it is 1 to all cores."""
    rest, threads = [], None
    words = iter(args)
    for word in words:
        name, equals, text = word.partition("=")
        if name == _FLAG:
            threads = _number(text if equals else next(words, ""))
        else:
            rest.append(word)
    return rest, threads


def use_threads(threads: int) -> None:
    """Have torch compute with so many threads, whether or not it has been imported."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


def say_later_if_busy() -> None:
    """As `say_if_busy`, once the command has run for a few seconds."""
    later = threading.Timer(_SECONDS_UNTIL_SAID, say_if_busy)
    later.daemon = True
    later.start()


def say_if_busy() -> None:
    """Note that other jobs use the cores, unless the number of threads was chosen. Linux only."""
    if os.environ.get("OMP_NUM_THREADS") or not _LOAD.exists():
        return
    line = busy_line(_LOAD.read_text(), cores())
    if line:
        note(line)


def busy_line(load: str, num_cores: int) -> str:
    """What to say of a load such as "1.93 1.20 0.80 3/210 4711": averages, then running/all tasks.

    A job counts if it was there in the last minute (the first average) and is there now.
    """
    average, _, _, tasks, *_ = load.split()
    now = int(tasks.split("/")[0]) - 1  # without this process
    others = min(round(float(average)), now)
    if num_cores < 2 or others < 1:
        return ""
    fitting = max(1, num_cores - others)
    return (
        f"this machine is busy: {others} running job{'s' if others > 1 else ''} on {num_cores} cores (load "
        f"{average}); {num_cores} threads may be many times slower than few: try --threads {fitting}"
    )


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= cores():
        raise ValueError(f"{_FLAG} takes a number from 1 to {cores()}, the cores there are, got {text!r}")
    return int(text)
