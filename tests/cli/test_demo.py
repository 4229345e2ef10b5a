"""`swiftmask demo` on a tiny model: files, report, and a second run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from swiftmask.cli.demo import Demo


def _demo(model: Path, out: Path) -> Demo:
    return Demo(
        model=str(model),
        out=out,
        steps=4,
        full_steps=1,
        images=12,
        shown=3,
        json=True,
    )


def test_demo(tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = _demo(tiny_scenes, tmp_path)
    assert demo.run() == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in report["rows"]][:2] == ["vanilla-4", "shortcut-4:1"]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    page = (tmp_path / "report.html").read_text()
    assert '"captions": ["' in page
    assert page.count('"row": ') == len({row["series"] for row in report["rows"]}), "a timeline a series"
    assert "http://" not in page
    assert "https://" not in page
    assert report["command"] in page
    assert f"{report['command']} --only" not in page, "a demo makes no row alone"
    assert "N = 12" in page
    for name in ("grid.png", "frontier.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.png.partial"))


def test_a_student_beside_its_teacher_and_fewer_denoising_steps(
    tiny_mar_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _demo(tiny_mar_scenes, tmp_path).run() == 0
    full, fast, equal, *_ = json.loads(capsys.readouterr().out)["rows"]
    assert [full["name"], fast["name"]] == ["vanilla-4", "tiny-mar-marval-4"]
    assert equal["name"].startswith("ddim-")
    assert "x10" in equal["name"]
    assert full["gflop"] > fast["gflop"]


def test_one_accelerator_at_a_time(tiny_scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--shortcut or --marval, not both"):
        Demo(out=tmp_path, model=str(tiny_scenes), shortcut="auto", marval="auto").run()


def test_a_model_without_accelerator_reuses_features(
    tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(tiny_scenes, alone)
    assert _demo(alone, tmp_path / "demo").run() == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["name"] for row in rows][:2] == ["vanilla-4", "reuse-4:1"]


def test_again_is_the_same(tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = _demo(tiny_scenes, tmp_path)
    demo.run()
    first, grid = capsys.readouterr().out, (tmp_path / "grid.png").read_bytes()
    replace(demo, json=False).run()
    assert "report.html" in capsys.readouterr().out
    assert (tmp_path / "grid.png").read_bytes() == grid
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == json.loads(first)["rows"]


def test_missing_weights_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swiftmask.registry.bundled_names", lambda kind=None: [])
    with pytest.raises(ValueError, match="bundled weights of maskgit-scenes are missing") as error:
        Demo(out=tmp_path / "demo").run()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "demo").exists()


def test_impossible_budget(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="between 1 and the number of steps"):
        Demo(out=tmp_path, steps=4, full_steps=5).run()
    with pytest.raises(ValueError, match="--shown"):
        Demo(out=tmp_path, shown=300).run()
