"""`swiftmask demo` on a tiny model: files, report, and a second run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from swiftmask.cli.bench import Bench
from swiftmask.cli.demo import Demo, found_in
from swiftmask.evaluate.quantities import Quantity, Spread
from swiftmask.evaluate.summary import Report, RowSummary


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
    assert json.loads((tmp_path / "demo.json").read_text()) == report
    page = (tmp_path / "report.html").read_text()
    assert '"captions": ["' in page
    assert page.count('"row": ') == len(report["rows"]), "a timeline a row"
    assert "http://" not in page
    assert "https://" not in page
    assert report["command"] in page
    assert f"{report['command']} --only" not in page, "a demo makes no row alone"
    assert "N = 12" in page
    for name in ("grid.png", "timeline.png"):
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
    page = (tmp_path / "report.html").read_text()
    assert "generates a token in one call of the head" in page
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_one_accelerator_at_a_time_and_at_least_one(tiny_scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--shortcut or --marval, not both"):
        Demo(out=tmp_path, model=str(tiny_scenes), shortcut="auto", marval="auto").run()
    alone = tmp_path / "alone"
    shutil.copytree(tiny_scenes, alone)
    with pytest.raises(ValueError, match="no accelerator of its own: name one with --shortcut"):
        Demo(out=tmp_path / "demo", model=str(alone)).run()


def test_again_is_the_same_and_shows_the_frontier(
    tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = _demo(tiny_scenes, tmp_path)
    demo.run()
    first, grid = capsys.readouterr().out, (tmp_path / "grid.png").read_bytes()
    Bench(
        model=str(tiny_scenes),
        steps=(2, 4),
        budgets=("4:2",),
        baselines=(),
        unguided=(),
        images=4,
        seeds=1,
        shown=1,
        out=tmp_path / "results" / "tiny",
    ).run()
    capsys.readouterr()
    with pytest.raises(FileNotFoundError, match="no measurements of tiny in --results .*nowhere"):
        replace(demo, results=tmp_path / "nowhere").run()
    replace(demo, json=False, results=tmp_path / "results").run()
    printed = capsys.readouterr().out
    assert "report.html" in printed
    assert (tmp_path / "grid.png").read_bytes() == grid
    assert json.loads((tmp_path / "demo.json").read_text())["rows"] == json.loads(first)["rows"]
    assert (tmp_path / "frontier.png").exists()
    assert "The whole frontier" in (tmp_path / "report.html").read_text()


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


def _row(name: str, *, gflop: float, ms: float, score: float) -> RowSummary:
    return RowSummary(
        name=name,
        series=name.partition("-")[0],
        steps=16,
        full_steps=16,
        calls={},
        gflop=gflop,
        ms=ms,
        peak_memory_bytes=0,
        values={"score": Spread(score, 0.0)},
        equal_cost={},
    )


def _sentences(fast: RowSummary, *others: RowSummary, num_pictures: int = 192) -> str:
    full = _row("vanilla-16", gflop=20.0, ms=100.0, score=0.90)
    report = Report(
        model="m",
        commit="c",
        date="2026-11-29",
        machine="m",
        N=num_pictures,
        seeds=1,
        batch_size=96,
        command="",
        quantities=[Quantity(key="score", label="judge score", higher_is_better=True)],
        floors={},
        notes=[],
        rows=[full, fast, *others],
    )
    return found_in(report, "shortcut")


def test_the_sentences_claim_what_the_figures_bear() -> None:
    slower = _sentences(_row("shortcut-16:6", gflop=10.0, ms=120.0, score=0.91))
    assert "2.0 times fewer operations" in slower
    assert "is slower (120 ms an image against 100 ms" in slower
    assert "no difference that N = 192 can show" in slower
    same = _sentences(_row("shortcut-16:15", gflop=19.5, ms=97.0, score=0.50))
    assert "takes no fewer operations" in same
    assert "is as fast" in same
    assert "fewer, beyond the noise" in same
    many = _sentences(_row("shortcut-16:6", gflop=10.0, ms=60.0, score=0.91), num_pictures=100_000)
    assert "is faster" in many
    assert "more, beyond the noise" in many


def test_the_unguided_row_is_named() -> None:
    fast = _row("shortcut-16:6", gflop=10.0, ms=60.0, score=0.70)
    text = _sentences(fast, _row("unguided-16", gflop=10.0, ms=50.0, score=0.90))
    assert "Without guidance, unguided-16 takes 2.0 times fewer operations and scores 90.0 %" in text
    assert "more, beyond the noise" in text
