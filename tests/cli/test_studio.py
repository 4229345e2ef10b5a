"""`swiftmask studio`: what it offers without being told, and mistakes, found before a model is loaded."""

import sys
from pathlib import Path

import pytest

import swiftmask
from swiftmask.cli import main
from swiftmask.cli.studio import Studio


def test_it_offers_the_models_own_accelerators_and_reuse(tiny_scenes: Path) -> None:
    base = swiftmask.load(tiny_scenes)
    offered = Studio(model=str(tiny_scenes))._catalogue(base)
    assert list(offered.variants) == ["tiny", "tiny+shortcut", "tiny+reuse"]
    asked = Studio(model=str(tiny_scenes), caching=("extrapolation-1",))._catalogue(base)
    assert list(asked.variants) == ["tiny", "tiny+extrapolation-1"]


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["studio", "no-such-model", *arguments])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_report_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such report: nowhere.html" in complaint(capsys, "--report", "nowhere.html")


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("swiftmask.studio.page", "swiftmask.studio.offline"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    line = complaint(capsys)
    assert "swiftmask studio needs gradio" in line and "pip install 'swiftmask[studio]'" in line
