"""Python processes that start in no time: a server imports the package once, and forks them."""

import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = get_context("forkserver")
_LOADED = (
    "swiftmask.cli.generate",
    "swiftmask.cli.train",
    "swiftmask.evaluate.study",
    "swiftmask.api",
    "swiftmask.training.loop",
    "swiftmask.recipes.base_model",
    "swiftmask.recipes.marval",
    "swiftmask.recipes.speed_rl",
    "swiftmask.cli.compare",
    "tests.hostile.kills",
    "torch._dynamo",
    "PIL.Image",
    "tyro",
    "rich.table",
)
CONTEXT.set_forkserver_preload(list(_LOADED))


def start(
    script: Path, arguments: Sequence[Path | str], said: Path, environment: Mapping[str, object] | None = None
) -> BaseProcess:
    """The script as `python SCRIPT ARGUMENTS` would run it, with what it says in the file `said`.

    Args:
        environment: variables beside those of this process.
    """
    told = os.environ | {key: str(value) for key, value in (environment or {}).items()}
    words = [str(argument) for argument in arguments]
    process = CONTEXT.Process(target=_run, args=(str(script), words, str(said), dict(told)))
    process.start()
    return process


def ended_well(processes: Sequence[BaseProcess], said: Sequence[Path]) -> None:
    """Wait for processes. Errors: AssertionError with what they said, unless all of them exit with 0."""
    try:
        for process in processes:
            process.join(timeout=1800)
        codes = [process.exitcode for process in processes]
        assert codes == [0] * len(codes), "\n".join(path.read_text() for path in said)
    finally:
        for process in processes:
            process.kill()


def _run(script: str, arguments: list[str], said: str, environment: dict[str, str]) -> None:
    with open(said, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(script))
    runpy.run_path(script, run_name="__main__")
