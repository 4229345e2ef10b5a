"""`swiftmask generate --shards`: one process or two of torchrun, the same bytes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from pyarrow import parquet

from swiftmask.cli import main
from swiftmask.fleet.shards import MANIFEST

Run = Callable[..., tuple[int, str, str]]
SHARDS = ("0", "1", "2", "--num-images", 3, "--steps", 2, "--shards", "webdataset", "--shard-size", 2)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(*arguments)` of `swiftmask generate`: exit code, stdout and the last line on stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["generate", *map(str, arguments)])
        captured = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, captured.out, (captured.err.splitlines() or [""])[-1]

    return run


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_two_processes_write_what_one_writes(
    tiny_folder: Path, tmp_path: Path, run: Run, in_processes: Callable[..., None]
) -> None:
    code, out, _ = run(tiny_folder, *SHARDS, "--out", tmp_path / "one", "--json")
    assert code == 0
    assert (json.loads(out)["drawn"], json.loads(out)["shards"]) == (9, 5)
    script = tmp_path / "generate.py"
    script.write_text("import sys\nfrom swiftmask.cli import main\nmain(sys.argv[1:])\n")
    arguments = ("generate", tiny_folder, *map(str, SHARDS), "--out", tmp_path / "two")
    in_processes(script, *arguments, count=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_the_images_are_those_of_a_run_without_shards(
    kind: str, tiny_folder: Path, tmp_path: Path, run: Run
) -> None:
    assert run(tiny_folder, *SHARDS[:-3], kind, "--out", tmp_path / "shards")[0] == 0
    assert run(tiny_folder, *SHARDS[:-4], "--out", tmp_path / "plain")[0] == 0
    if kind == "folder":
        folder = tmp_path / "shards" / "shard-00000"
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        images = [Image.open(folder / row["file_name"]) for row in rows]
    else:
        from io import BytesIO

        rows = parquet.read_table(tmp_path / "shards" / "shard-00000.parquet").to_pylist()
        images = [Image.open(BytesIO(row["image"]["bytes"])) for row in rows]
    assert len(images) == 9
    for row, image in zip(rows, images, strict=True):
        plain = Image.open(tmp_path / "plain" / f"{row['label']}-{row['seed']}.png")
        assert image.tobytes() == plain.tobytes()


def test_other_settings_are_refused_in_one_line(tiny_folder: Path, tmp_path: Path, run: Run) -> None:
    assert run(tiny_folder, *SHARDS, "--out", tmp_path)[0] == 0
    before = contents(tmp_path)
    code, out, said = run(tiny_folder, *SHARDS, "--guidance", 1.5, "--out", tmp_path)
    assert (code, out) == (2, "")
    assert "guidance None there, 1.5 now" in said and "--overwrite" in said
    assert contents(tmp_path) == before
    code, out, _ = run(tiny_folder, *SHARDS, "--out", tmp_path, "--json")
    assert code == 0 and json.loads(out)["skipped"] == 9
    assert contents(tmp_path) == before
    assert run(tiny_folder, *SHARDS, "--guidance", 1.5, "--overwrite", "--out", tmp_path)[0] == 0
    assert json.loads((tmp_path / MANIFEST).read_text())["settings"]["sampling"]["guidance"] == 1.5


def test_a_shard_size_needs_shards(tiny_folder: Path, tmp_path: Path, run: Run) -> None:
    code, _, said = run(tiny_folder, "0", "--shard-size", 8, "--out", tmp_path)
    assert code == 2 and "--shard-size needs --shards" in said


def test_parquet_without_pyarrow_is_refused_before_work(
    tiny_folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, said = run(tiny_folder, "0", "--shards", "parquet", "--out", tmp_path / "out")
    assert code == 2 and "swiftmask[data]" in said
    assert not (tmp_path / "out").exists()
