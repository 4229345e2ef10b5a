"""`swiftmask bench --engine ray`: rows and seeds of a study over a pool of processes."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from swiftmask.cli.errors import USER_MISTAKES, one_line
from swiftmask.cli.loading import enter
from swiftmask.cli.progress import progress_bar
from swiftmask.fleet.pool import Pool, Row, connected, once, spread

if TYPE_CHECKING:
    from swiftmask.cli.bench import Bench

_SLICES = 8
"""Of the work, for each worker: a worker that is done takes another one."""


def generate_on_ray(command: "Bench") -> None:
    """Generate and read all images of the study that are missing.

    Errors: ValueError for what a worker finds wrong, and those of `connected` and `spread`.
    """
    with connected(Pool(num_workers=command.workers, num_gpus=command.gpus_per_worker)) as pool:
        here, count = str(Path.cwd()), _SLICES * pool.num_workers
        _check(once(pool, prepare, command, here))  # real images are described once, not by every worker
        rows: list[Row] = [{"slice": place} for place in range(count)]
        with progress_bar() as progress:
            task = progress.add_task("generating and scoring", total=count, unit="slices")
            for answer in spread(pool, rows, Worker, (command, here, count)):
                _check(answer)
                progress.advance(task)


def prepare(command: "Bench", folder: str) -> Row:
    """In a worker: all that comes before the first image."""
    try:
        Worker(command, folder, 1).open()
    except USER_MISTAKES as error:
        return {"error": one_line(error)}
    return {"error": ""}


class Worker:
    """Holds the models, and generates a slice at a time: every `count`-th part of the study."""

    def __init__(self, command: "Bench", folder: str, count: int) -> None:
        self._command, self._folder, self._count = command, folder, count
        self._study, self._rows = None, []

    def __call__(self, row: Row) -> Row:
        """`row` names the slice; what is wrong, or nothing."""
        from swiftmask.evaluate.processes import Processes

        try:
            self.open()
            assert self._study is not None
            share = Processes(int(row["slice"]), self._count)
            replace(self._study, processes=share).generate(self._rows, self._command.sample())
        except USER_MISTAKES as error:
            return {"error": one_line(error)}
        return {"error": ""}

    def open(self) -> None:
        """Load what the study needs, once."""
        if self._study is not None:
            return
        from swiftmask.api import load
        from swiftmask.cli.loading import own_device
        from swiftmask.cli.rows import Rows
        from swiftmask.evaluate.processes import ALONE

        enter(self._folder)
        command = self._command
        base = load(command.model, dtype=command.dtype, device=own_device(ALONE, command.device))
        self._study, self._rows = command.prepared(base, Rows(base), command.sample(), ALONE)


def _check(answer: Row) -> None:
    """Errors: ValueError for the mistake that an answer tells of."""
    if answer["error"]:
        raise ValueError(answer["error"])
