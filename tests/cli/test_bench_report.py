"""`swiftmask bench report` on tiny models: what is never left out, resuming, models that draw no Scenes."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from swiftmask.cli.bench_report import BenchReport
from swiftmask.cli.demo import Demo
from swiftmask.models.maskgit import MaskGIT


def _command(model: Path, out: Path) -> BenchReport:
    return BenchReport(
        model=str(model),
        steps=(2,),
        budgets=("4:2",),
        unguided=("2",),
        pictures=6,
        seeds=1,
        batch=6,
        shown=2,
        out=out,
        json=True,
    )


def test_report(
    tiny_scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = replace(_command(tiny_scenes, tmp_path), temperatures=(0.5,))
    assert command.run() == 0
    report = json.loads(capsys.readouterr().out)
    rivals = ["reuse-4:2", "extrapolation-1-4:2", "extrapolation-2-4:2"]
    assert [row["name"] for row in report["rows"]] == [
        "vanilla-2",
        "vanilla-4",
        "shortcut-4:2",
        *rivals,
        "unguided-2",
        "temperature-0.5-2",
        "temperature-0.5-4",
    ]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report["command"] == command.command()
    assert (tmp_path / "report.md").read_text().startswith("## Quality and cost of tiny")
    page = (tmp_path / "report.html").read_text()
    assert all(row["command"] in page for row in report["rows"])
    assert '"captions": ["' in page
    assert '"row": "shortcut-4:2", "grid": [6, 6]' in page

    monkeypatch.setattr("swiftmask.evaluate.study._measure", None)  # nothing may be measured again
    assert command.run() == 0
    assert json.loads(capsys.readouterr().out) == report

    another = shutil.copytree(tiny_scenes, tmp_path / "another")
    with pytest.raises(ValueError, match="report of another model .*tiny, this is another.*--overwrite"):
        replace(command, model=str(another)).run()
    with pytest.raises(ValueError, match="report of other settings .*temperatures 0.5.*--overwrite"):
        replace(command, temperatures=()).run()
    with pytest.raises(ValueError, match="report of other settings .swiftmask bench report"):
        Demo(model=str(tiny_scenes), out=tmp_path).run()
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert replace(command, temperatures=(), overwrite=True, batch=3).run() == 0
    assert json.loads((tmp_path / "report.json").read_text()) != report


class _Thirds(nn.Module):
    """Mean colour of the left, the middle and the right of a picture."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, (1, 3)).flatten(1)


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    folder = tmp_path / "real"
    folder.mkdir()
    for index in range(24):
        pixels = torch.randint(0, 255, (8, 8, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return folder


def test_another_model_against_a_folder(
    tiny_folder: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.jit.script(_Thirds()).save(tmp_path / "thirds.pt")
    command = replace(
        _command(tiny_folder, tmp_path / "out"),
        reference=reference,
        extractor=str(tmp_path / "thirds.pt"),
        pictures=12,
        only=("vanilla-4", "reuse-4:2"),
    )
    assert command.run() == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"][:2] == ["fd_thirds", "kid_thirds"]
    assert report["reference_pictures"] == 24
    full, reuse = report["rows"]
    assert reuse["gflop_per_picture"] < full["gflop_per_picture"]
    assert f"--reference {reference}" in reuse["command"]
    assert "--only reuse-4:2" in reuse["command"]
    assert "class 4, seed 0" in (tmp_path / "out" / "report.html").read_text()
    features = sorted(path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("features-*.safetensors"))
    assert command.run() == 0
    assert json.loads(capsys.readouterr().out) == report
    again = sorted(path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("features-*.safetensors"))
    assert again == features
    for path in reference.iterdir():
        Image.new("RGB", (9, 8)).save(path)
    with pytest.raises(ValueError, match="generates 8x8, the real images are 9x8"):
        command.run()


@pytest.mark.slow
@pytest.mark.parametrize("judged", [True, False])
def test_two_processes_find_the_same(
    judged: bool, tiny_folder: Path, tiny_scenes: Path, reference: Path, tmp_path: Path
) -> None:
    """Rows are shared where a judge looks at them, pictures where an extractor does (256 at a time)."""
    torch.jit.script(_Thirds()).save(tmp_path / "thirds.pt")
    command = _command(tiny_scenes if judged else tiny_folder, tmp_path / "out")
    if not judged:
        extractor = str(tmp_path / "thirds.pt")
        command = replace(command, reference=reference, extractor=extractor, pictures=300)
    words = shlex.split(command.command())[1:]
    found = []
    for count in (1, 2):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "swiftmask", *words, "--shown", "1", "--json"],
            capture_output=True,
            text=True,
            timeout=900,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)["rows"]
        assert len(rows) > 3
        for row in rows:
            del row["ms_per_picture"], row["peak_memory_bytes"]
        found.append(rows)
    assert found[0] == found[1]


def test_mistakes_are_one_clear_line(tiny_folder: Path, tiny_scenes: Path, tmp_path: Path) -> None:
    command = _command(tiny_folder, tmp_path)
    with pytest.raises(ValueError, match=r"not generate Scenes classes.*--reference FOLDER --extractor FILE"):
        command.run()
    with pytest.raises(ValueError, match="go together"):
        replace(command, reference=tmp_path).run()
    with pytest.raises(ValueError, match="need --reference"):
        replace(command, classes=3).run()
    with pytest.raises(FileNotFoundError, match="no such reference"):
        replace(command, reference=tmp_path / "none", extractor="scenes").run()
    compared = replace(command, reference=tmp_path, extractor="scenes")
    with pytest.raises(ValueError, match="knows 7"):
        replace(compared, classes=8).run()
    with pytest.raises(ValueError, match="takes classes: leave out --prompts"):
        replace(compared, prompts=tmp_path / "prompts.txt").run()
    with pytest.raises(ValueError, match="no row is called that, there are vanilla-2"):
        replace(_command(tiny_scenes, tmp_path), only=("vanilla-3",)).run()
    with pytest.raises(ValueError, match="--shown must be at least 1"):
        replace(command, shown=0).run()


def test_a_model_is_asked_how_many_classes_it_knows(golden_maskgit: MaskGIT) -> None:
    assert golden_maskgit.spec.num_classes == 7
