"""Files written whole or not at all."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save, save_file

from swiftmask.core.writing import files_below, remove_partials, write_json, write_text, written_whole


def test_a_file_is_there_when_it_is_whole_and_no_partial_one_is(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    with written_whole(path) as partial:
        assert partial.parent == path.parent, "a rename across disks would not be atomic"
        assert str(os.getpid()) in partial.name, "two processes may write one file"
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["a.json"]


def test_an_error_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), written_whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_weights_can_be_read_by_whom_the_umask_lets_read(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with written_whole(tmp_path / "model.safetensors") as partial:
            save_file({"a": torch.zeros(2)}, partial)
    finally:
        os.umask(before)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == mode


def test_line_ends_stay_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "ä\n\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa4\n\r\n"
    write_json(tmp_path / "a.json", {"one": 1})
    assert (tmp_path / "a.json").read_text() == '{\n  "one": 1\n}\n'


@pytest.mark.parametrize(
    "complaint",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_names_the_file(complaint: Exception, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, written_whole(tmp_path / "model.bin"):
        raise complaint
    assert caught.value.filename == str(tmp_path / "model.bin")


def test_partial_files_of_dead_processes_go_when_their_file_is_written(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f".a.json.{dead.pid}.partial"
    kept = [tmp_path / f".a.json.{os.getppid()}.partial", tmp_path / f".b.json.{dead.pid}.partial"]
    for path in (left, *kept):
        path.write_text("half")
    write_text(tmp_path / "a.json", "whole")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "a.json"])


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    tensors = save({"a": torch.zeros(100)})
    left = {".a.json.77.partial": b"x", "below/.tmpAb12xZ": tensors[:150], ".tmpEmpty1": b""}
    kept = {
        "a.json": b"x",
        "another run/.lock": b"",
        "another run/.b.json.77.partial": b"x",
        "results.partial": b"x",
        ".b.partial": b"x",
        ".lock": b"",
        ".tmpNote12": b"my own words",
    }
    for name, content in (left | kept).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    remove_partials(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(kept)


def test_files_are_looked_for_in_three_folders_below(tmp_path: Path) -> None:
    for folder in ("", "1", "1/2", "1/2/3", "1/2/3/4"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "file").touch()
    assert {len(path.relative_to(tmp_path).parts) for path in files_below(tmp_path)} == {1, 2, 3, 4}
