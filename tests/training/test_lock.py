"""A run has its folder to itself, and a killed one leaves nothing behind that would keep the next out."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from swiftmask.training.lock import sole_writer

HOLD = """
import sys, time
from pathlib import Path
from swiftmask.training.lock import sole_writer
with sole_writer(Path(sys.argv[1])):
    Path(sys.argv[1], "held").touch()
    time.sleep(60)
"""


def test_another_process_is_refused_until_the_first_is_gone_even_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)])
    try:
        while not (tmp_path / "held").exists():
            assert holder.poll() is None
            time.sleep(0.05)
        with pytest.raises(ValueError, match="another run is writing to .*: wait until it ends"):
            with sole_writer(tmp_path):
                pass
    finally:
        holder.kill()
        holder.wait()
    with sole_writer(tmp_path / "new"), sole_writer(tmp_path):
        pass


def test_an_error_inside_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), sole_writer(tmp_path):
        raise KeyError
    with sole_writer(tmp_path):
        pass


def test_a_folder_made_for_a_run_that_fails_at_once_is_removed(tmp_path: Path) -> None:
    for wrote, kept in (((), False), (("config.yaml",), False), (("a.png",), True)):
        with pytest.raises(KeyError), sole_writer(tmp_path / "new"):
            for name in wrote:
                (tmp_path / "new" / name).touch()
            raise KeyError
        assert (tmp_path / "new").exists() == kept


def test_of_several_processes_of_one_run_the_first_holds_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sole_writer(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with sole_writer(tmp_path):
            pass
