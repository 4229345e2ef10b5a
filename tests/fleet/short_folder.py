"""A folder for Ray's sockets, whose paths may have about 100 letters."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short_folder() -> Iterator[Path]:
    """Where a Ray lives that is started here, for RAY_TMPDIR: it finds no other Ray of this machine."""
    folder = Path(tempfile.mkdtemp(prefix="r"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
