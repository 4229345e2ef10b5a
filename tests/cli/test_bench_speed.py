"""`swiftmask bench speed` on tiny models."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from swiftmask.cli.bench_speed import BenchSpeed
from swiftmask.evaluate.speed import SpeedReport
from swiftmask.methods.shortcut import ShortcutConfig
from swiftmask.models.maskgit.network import TransformerConfig
from swiftmask.models.maskgit.weights import RELEASED


def test_an_unknown_size_is_a_clear_line() -> None:
    with pytest.raises(ValueError, match="unknown released size"):
        BenchSpeed(model="maskgit-1024", random_weights=True).run()


def test_speed(tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = BenchSpeed(
        model=str(tiny_scenes),
        steps=4,
        full_steps=2,
        repeats=2,
        matmul_sizes=(32,),
        out=tmp_path / "speed.json",
        json=True,
    )
    assert command.run() == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == set(SpeedReport.__slots__)
    assert printed["full_step_flops"] > printed["shortcut_step_flops"] > 0
    assert printed["share_from"] == "computed from the measured steps"
    assert json.loads((tmp_path / "speed.json").read_text()) == printed
    replace(command, whole=True, batch=2, json=False, out=None).run()
    assert "measured whole decodes" in " ".join(capsys.readouterr().out.split())


def test_operations_grow_with_the_batch_and_both_branches_count(
    tiny_scenes: Path,
) -> None:
    command = BenchSpeed(model=str(tiny_scenes), steps=4, full_steps=2, batch=1)
    one, three = command._setup(), replace(command, batch=3)._setup()
    assert three.full_flops == 3 * one.full_flops
    assert three.fast_flops == 3 * one.fast_flops
    rows, width = 2 * 37, 32
    matmuls = 2 * rows * (3 * width * width + 2 * (4 * width * width + 2 * width * 64))
    assert one.full_flops > matmuls


def test_speed_with_random_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = TransformerConfig(
        width=32, depth=1, num_heads=2, mlp_width=64, codebook_size=32, num_classes=3, grid=4
    )
    monkeypatch.setitem(RELEASED, "maskgit-256", sizes)
    small = ShortcutConfig(width=32, bottleneck_width=16, num_heads=2)
    monkeypatch.setattr("swiftmask.methods.shortcut.RELEASED_SHORTCUT", small)
    command = BenchSpeed(
        model="maskgit-256",
        random_weights=True,
        dtype="bfloat16",
        steps=4,
        full_steps=2,
        repeats=1,
        matmul_sizes=(32,),
        json=True,
    )
    assert command.run() == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["model"], printed["dtype"]) == ("maskgit-256 (random weights)", "bfloat16")
    assert printed["full_step_ms"] > 0
