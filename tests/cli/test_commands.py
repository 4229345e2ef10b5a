"""What the commands do when all is well."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from swiftmask.api import load
from swiftmask.cli import COMMANDS, main, overview
from swiftmask.cli.overrides import leaves, override
from swiftmask.cli.train import Train
from swiftmask.models.maskgit import MaskGIT
from swiftmask.registry import bundled_folder, bundled_names, describe
from swiftmask.training.lock import sole_writer


def succeeded(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    return captured.out


def generated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    return json.loads(succeeded(capsys, "generate", *arguments, "--json"))


def test_generate(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (tiny_folder, "3", "0", "--num", 2, "--steps", 4, "--batch-size", 3, "--out", tmp_path)
    summary = generated(capsys, *arguments)
    assert "gflop_per_picture" not in summary["cost"], "counting takes longer than a small model's images"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == sorted(
        ["0-0.png", "0-1.png", "3-0.png", "3-1.png", "generate.json", "grid.png"]
    )
    assert summary["drawn"] == 4
    assert summary["cost"]["calls_per_picture"]["backbone"] == 4
    assert Image.open(tmp_path / "grid.png").size == (16, 16)
    assert json.loads((tmp_path / "generate.json").read_text()) == summary


def test_generate_resumes(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (tiny_folder, "3", "0", "--steps", 4, "--out", tmp_path)
    generated(capsys, *arguments)
    first = (tmp_path / "3-0.png").read_bytes()
    (tmp_path / "3-0.png").unlink()
    (tmp_path / "0-0.png").write_bytes(b"damaged")
    assert generated(capsys, *arguments)["drawn"] == 2
    assert (tmp_path / "3-0.png").read_bytes() == first
    again = generated(capsys, *arguments)
    assert (again["drawn"], again["skipped"], again["cost"]) == (0, 2, None)


def test_generate_with_another_schedule(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (tiny_folder, "3", "--steps", 4, "--out", tmp_path)
    generated(capsys, *arguments)
    own = (tmp_path / "3-0.png").read_bytes()
    summary = generated(capsys, *arguments, "--schedule-power", 2, "--overwrite")
    assert summary["settings"]["sampling"]["schedule_power"] == 2
    assert (tmp_path / "3-0.png").read_bytes() != own


def test_generate_with_an_accelerator(
    tiny_folder: Path, tiny_shortcut_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shortcut = ("--shortcut", tiny_shortcut_folder, "--full-steps", 2)
    summary = generated(capsys, tiny_folder, "1", "--steps", 6, *shortcut, "--out", tmp_path)
    assert summary["cost"]["calls_per_picture"] == {
        "backbone": 2,
        "head": 6,
        "decoder": 1,
        "shortcut": 4,
        "branches": 2,
    }
    assert summary["settings"]["full_steps"] == [0, 3]
    summary = generated(capsys, tiny_folder, "1", "--steps", 6, "--caching", "reuse", "--out", tmp_path / "r")
    assert summary["cost"]["calls_per_picture"]["reuse"] == 3


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in json.loads(succeeded(capsys, "models", "--json"))}
    assert rows["scenes-judge"]["kind"] == "reader"
    assert rows["scenes-judge"]["parameters"] > 0
    assert rows["maskgit-scenes"]["classes"] == 48
    assert rows["mar-scenes-marval"]["draws"] == "mar-scenes"


def test_models_fit_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    printed = succeeded(capsys, "models")
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    for name in bundled_names():
        assert re.search(rf"^{name} ", printed, re.MULTILINE), name


@pytest.mark.parametrize("name", bundled_names("model"))
def test_what_is_listed_of_a_model_is_what_it_is(name: str) -> None:
    listed, pipeline = describe(bundled_folder(name)), load(name)
    assert listed.size == pipeline.image_size()
    assert listed.steps == pipeline.steps
    assert listed.draws == pipeline.model.spec.draws


def test_convert(tmp_path: Path, golden_maskgit: MaskGIT, capsys: pytest.CaptureFixture[str]) -> None:
    weights, codec, out = tmp_path / "a.pth", tmp_path / "last.ckpt", tmp_path / "out"
    torch.save({"model_state_dict": golden_maskgit.transformer.state_dict()}, weights)
    torch.save({"state_dict": golden_maskgit.codec.state_dict()}, codec)
    sizes = ("--num-heads", 4, "--codebook-size", 32, "--resolution", 8)
    arguments = ("convert", weights, "--codec", codec, "--out", out, *sizes)
    found = json.loads(succeeded(capsys, *arguments, "--json"))
    assert found["transformer"]["width"] == golden_maskgit.spec.width
    converted = MaskGIT.from_pretrained(out).state_dict()
    assert all(torch.equal(value, converted[key]) for key, value in golden_maskgit.state_dict().items())
    with pytest.raises(SystemExit):
        main([str(argument) for argument in arguments])
    assert "--overwrite" in capsys.readouterr().err


def test_convert_a_shortcut(
    tmp_path: Path, tiny_folder: Path, golden_shortcut: torch.nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(golden_shortcut.state_dict(), tmp_path / "s.pth")
    arguments = (
        "convert",
        tmp_path / "s.pth",
        "--base",
        tiny_folder,
        "--out",
        tmp_path / "s",
        "--num-heads",
        4,
    )
    assert "shortcut: parameters" in succeeded(capsys, *arguments)
    generated(capsys, tiny_folder, "1", "--steps", 4, "--shortcut", tmp_path / "s", "--out", tmp_path / "o")


def test_dry_run_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "train",
        "maskgit-scenes",
        "training.num_steps=7",
        "codec.kept_codes=99",
        "--dry-run",
    )
    config = json.loads(succeeded(capsys, *arguments, "--json"))
    assert config["training"]["num_steps"] == 7
    assert config["codec"]["kept_codes"] == 99
    assert "training.num_steps=7" in succeeded(capsys, *arguments)


def test_train_runs_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = (
        "training.num_steps=2",
        "training.batch_size=2",
        "training.log_every=1",
        "training.precision=no",
        "data=scenes:classes",
        "source.num_images=60",
        "size=tiny",
        "num_codes=16",
        "resolution=16",
    )
    arguments = ["train", "tokenizer", *small, "--out", str(tmp_path)]
    for _ in range(2):
        left = tmp_path / ".checkpoint.safetensors.4711.partial"  # of a run that was killed
        left.write_bytes(b"half")
        assert str(tmp_path) in succeeded(capsys, *arguments)
        assert not left.exists()
    for checkpoint in tmp_path.glob("checkpoint*.safetensors"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"swiftmask: {tmp_path / 'checkpoint.safetensors'} is damaged")
    assert "delete it" in said


def test_the_first_of_several_processes_speaks_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other ranks of torchrun train in silence."""
    monkeypatch.setattr("swiftmask.recipes.tokenizer.TokenizerRecipe.run", lambda recipe, folder, log: folder)
    for rank, said in (("0", 2), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert Train(recipe="tokenizer", out=tmp_path).run() == 0
        captured = capsys.readouterr()
        assert len((captured.err + captured.out).splitlines()) == said


def test_two_trainings_in_one_folder_are_refused(tmp_path: Path) -> None:
    with sole_writer(tmp_path), pytest.raises(ValueError, match="another run is writing to"):
        Train(recipe="scenes-judge", out=tmp_path).run()


def test_interrupted_training_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("swiftmask.recipes.tokenizer.TokenizerRecipe.run", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["train", "tokenizer", "--out", str(tmp_path)])
    assert stop.value.code == 130
    assert "the same command continues" in capsys.readouterr().err


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inner:
    rate: float | None = None
    sizes: tuple[int, ...] = (1,)
    pair: tuple[float, float] = (0.0, 1.0)
    fast: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outer:
    inner: _Inner = field(default_factory=_Inner)
    name: str = "x"


def test_overrides_are_typed() -> None:
    changes = ["inner.rate=3e-4", "inner.sizes=1,2,3", "inner.pair=(0.5, 2)", "inner.fast=true", "name=y=z"]
    changed = override(_Outer(), changes)
    assert changed == _Outer(inner=_Inner(rate=3e-4, sizes=(1, 2, 3), pair=(0.5, 2.0), fast=True), name="y=z")
    assert override(changed, ["inner.rate=none"]).inner.rate is None
    assert dict(leaves(changed))["inner.fast"] is True
    with pytest.raises(ValueError, match="inner.pair expects"):
        override(_Outer(), ["inner.pair=1"])
    with pytest.raises(ValueError, match="unknown setting 'inner'"):
        override(_Outer(), ["inner=1"])


def test_overview_names_every_command() -> None:
    assert all(name in overview() for name in COMMANDS)
