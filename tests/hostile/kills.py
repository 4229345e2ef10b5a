"""Commands that are killed while they write, in processes that have loaded everything already.

A command is killed (SIGKILL) at one of its changes to files, chosen by number, or a little after it, which is
in the middle of what writes the file.
"""

import json
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tests.processes import CONTEXT

_SAID, _CHANGES = "said.txt", "changes.txt"
_LATEST = 0.004
"""Seconds that a kill comes after a change, at most."""

_TIMES = re.compile(r"time|seconds|ms\b|ms_|_ms|date|memory|cost|drawn|skipped|hours|machine|commit")
"""Keys of what two runs on one machine differ in, killed or not."""


@dataclass(frozen=True)
class Kill:
    """At the change of this number, and how many seconds after it."""

    change: int
    delay: float


def ran(arguments: Sequence[object], place: Path, kill: Kill | None = None) -> int:
    """A command in the working directory `place`; its exit code, or -9 if it was killed."""
    place.mkdir(exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    process = CONTEXT.Process(target=_run, args=([str(word) for word in arguments], place, kill))
    process.start()
    process.join(300)
    assert process.exitcode is not None, f"{arguments} hangs"
    return process.exitcode


def chain(arguments: Sequence[object], folder: Path, *, kills: int, seed: int) -> int:
    """Run a command undisturbed, and elsewhere killed up to so many times, until it ends; both must leave the
    same. Returns how often it was killed.
    """
    whole, killed = folder / "whole", folder / "killed"
    assert ran(arguments, whole) == 0, (whole / _SAID).read_text()
    changes = int((whole / _CHANGES).read_text())
    rng, count, code = random.Random(seed), 0, -signal.SIGKILL
    while code == -signal.SIGKILL and count < kills:
        delay = rng.choice((0, rng.uniform(0, _LATEST))) if count else 0  # the first always meets it
        kill = Kill(rng.randint(1, changes), delay)
        code = ran(arguments, killed, kill)
        count += code == -signal.SIGKILL
    if code == -signal.SIGKILL:
        code = ran(arguments, killed)
    assert code == 0, (killed / _SAID).read_text()
    assert count, "it was never killed"
    expected, found = contents(whole), contents(killed)
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert found[name] == expected[name], f"{name} differs after {count} kills"
    return count


def contents(folder: Path) -> dict[str, Any]:
    """What all files below hold, as far as it is the same in every run; locks are no content."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: _content(path)
        for name, path in found.items()
        if path.name not in (_SAID, _CHANGES, ".lock", "checkpoint.previous.safetensors")
    }


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            tensors = {key: file.get_slice(key).get_dtype() for key in file.keys()}
            header = int.from_bytes(path.read_bytes()[:8], "little")
            return tensors, file.metadata(), path.read_bytes()[8 + header :]
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix in (".html", ".md") or path.name.endswith("frontier.png"):  # with times
        return len(path.read_bytes()) > 0
    return path.read_bytes()


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if not _TIMES.search(key)}
    return [_timeless(value) for value in content] if isinstance(content, list) else content


def _run(arguments: list[str], place: Path, kill: Kill | None) -> None:
    """In a process of its own: the command, with what it says in a file."""
    from swiftmask.cli import main

    os.chdir(place)
    with open(_SAID, "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    changes = [0]

    def count(event: str, args: tuple[Any, ...]) -> None:
        if _is_change(event, args, place):
            changes[0] += 1
            if kill is not None and changes[0] == kill.change:
                _die(kill.delay)

    sys.addaudithook(count)
    try:
        main(arguments)
    finally:
        total = changes[0]
        Path(_CHANGES).write_text(str(total))
        sys.stdout.flush()


def _is_change(event: str, args: tuple[Any, ...], place: Path) -> bool:
    """Whether a file below `place` is about to be made, opened to be written, renamed or removed."""
    if event == "open":
        writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        writes = event in ("os.rename", "os.remove", "os.mkdir")
    if not writes or not isinstance(args[0], str | bytes | os.PathLike):
        return False
    return os.path.abspath(os.fsdecode(args[0])).startswith(str(place))


def _die(delay: float) -> None:
    def kill() -> None:
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    if delay:
        threading.Thread(target=kill, daemon=True).start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)
