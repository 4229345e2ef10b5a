"""One run in a folder at a time. The lock belongs to its process and goes with it, however that ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from swiftmask.core.writing import LOCK, missing_folders, remove_empty, remove_partials

SETTINGS = "config.yaml"
"""What a run was started with; it is written before anything else."""


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep others out of a run's folder, or be told that one is in it already; what killed runs left there of
    files they were writing is removed.

    Of processes that `torchrun` started, the first stands for all. A folder made for a run that fails
    before it writes anything but its settings is removed.

    Errors: ValueError if another process writes there.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    made = missing_folders(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another run is writing to {folder}: wait until it ends, or choose another folder"
        ) from None
    try:
        remove_partials(folder)
        yield
    except BaseException:
        if made and {path.name for path in folder.iterdir()} <= {LOCK, SETTINGS}:
            for path in folder.iterdir():
                path.unlink()
            remove_empty(made)
        raise
    finally:
        lock.release()
