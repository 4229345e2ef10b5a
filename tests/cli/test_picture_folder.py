"""The folder of `generate`: one run at a time, one set of settings, a share for each process."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from swiftmask.__main__ import main
from swiftmask.cli.picture_folder import PictureFolder
from swiftmask.core.types import Trajectory
from swiftmask.training.lock import sole_writer

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(*arguments)` of `swiftmask generate`: exit code and the last line on stderr."""

    def run(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main(["generate", *map(str, arguments)])
        code = stop.value.code
        assert isinstance(code, int)
        return code, (capsys.readouterr().err.splitlines() or [""])[-1]

    return run


def test_pictures_of_other_settings_are_kept(tiny_folder: Path, tmp_path: Path, run: Run) -> None:
    assert run(tiny_folder, "3", "--steps", 4, "--out", tmp_path)[0] == 0
    first = (tmp_path / "3-0.png").read_bytes()
    for changed in (("3", "--steps", 4, "--guidance", 1.5), ("0", "--steps", 2)):  # another class, too
        code, said = run(tiny_folder, *changed, "--out", tmp_path)
        assert code == 2
        assert str(tmp_path) in said and "--overwrite" in said
        assert ("guidance" if "3" in changed else "steps 4 there, 2 now") in said
    assert (tmp_path / "3-0.png").read_bytes() == first
    assert not (tmp_path / "0-0.png").exists()
    assert run(tiny_folder, "3", "--steps", 4, "--guidance", 1.5, "--overwrite", "--out", tmp_path)[0] == 0
    assert (tmp_path / "3-0.png").read_bytes() != first


def test_somebody_elses_picture_is_kept(tiny_folder: Path, tmp_path: Path, run: Run) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "3-0.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    code, said = run(tiny_folder, "3", "--steps", 2, "--out", tmp_path)
    assert code == 2
    assert "3-0.png was not drawn by swiftmask" in said
    assert run(tiny_folder, "0", "--steps", 2, "--out", tmp_path)[0] == 0


def test_one_run_in_a_folder_at_a_time(tiny_folder: Path, tmp_path: Path, run: Run) -> None:
    with sole_writer(tmp_path):
        script = "import sys; from swiftmask.__main__ import main; main(sys.argv[1:])"
        command = [sys.executable, "-c", script, "generate", str(tiny_folder), "3", "--out", str(tmp_path)]
        other = subprocess.run(command, capture_output=True, text=True)
    assert other.returncode == 2
    assert other.stderr.splitlines()[-1].startswith(f"swiftmask: another run is writing to {tmp_path}")
    assert not list(tmp_path.glob("*.png"))


def test_nothing_is_kept_of_a_picture_that_is_written(
    tiny_folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = []
    save = PictureFolder.save

    def count(self: PictureFolder, *arguments: Any) -> None:
        gc.collect()
        alive.append(sum(type(each) is Trajectory for each in gc.get_objects()))
        save(self, *arguments)

    monkeypatch.setattr(PictureFolder, "save", count)
    assert run(tiny_folder, "3", "--num", 8, "--batch-size", 1, "--steps", 2, "--out", tmp_path)[0] == 0
    assert alive == [alive[0]] * 8


@pytest.mark.slow
def test_processes_share_the_pictures(tiny_folder: Path, tmp_path: Path, run: Run) -> None:
    arguments = [str(tiny_folder), "3", "0", "--num-images", "3", "--steps", "2"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "swiftmask", "generate", *arguments, "--out", str(tmp_path / "both"), "--json"]
    both = subprocess.run(
        [sys.executable, *torchrun, *command], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True
    )
    assert both.returncode == 0, both.stderr
    assert run(*arguments, "--out", tmp_path / "one")[0] == 0
    names = sorted(path.name for path in (tmp_path / "one").glob("*.png"))
    assert names == sorted(path.name for path in (tmp_path / "both").glob("*.png"))
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()
    summary = json.loads((tmp_path / "both" / "generate.json").read_text())
    assert (summary["drawn"], len(summary["pictures"])) == (6, 6)


@pytest.mark.slow
def test_killed_runs_leave_nothing_behind(tiny_folder: Path, tmp_path: Path, run: Run) -> None:
    arguments = [str(tiny_folder), "3", "--num", "60", "--steps", "2", "--batch-size", "1"]
    command = [sys.executable, "-m", "swiftmask", "generate", *arguments, "--out", str(tmp_path / "killed")]
    for wanted in (5, 20):
        started = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while len(list((tmp_path / "killed").glob("*.png"))) < wanted and started.poll() is None:
            time.sleep(0.01)
        started.send_signal(signal.SIGKILL)
        started.wait()
    (tmp_path / "killed" / ".3-7.png.4711.partial").write_bytes(b"half")
    for folder in ("killed", "whole"):
        assert run(*arguments, "--out", tmp_path / folder)[0] == 0
    for path in (tmp_path / "whole").glob("*.png"):
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()
    assert not list((tmp_path / "killed").glob(".*.partial"))
