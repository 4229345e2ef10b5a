"""`swiftmask bench` and `swiftmask evaluate` on a tiny model."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from swiftmask.cli.bench import BenchQuality, BenchSpeed, parse_budget
from swiftmask.cli.evaluate import Evaluate
from swiftmask.evaluate.speed import SpeedReport
from swiftmask.methods.shortcut import ShortcutConfig
from swiftmask.models.maskgit.network import TransformerConfig
from swiftmask.models.maskgit.weights import RELEASED


def _bench(model: Path, out: Path) -> BenchQuality:
    return BenchQuality(
        model=str(model),
        steps=(2, 4),
        shortcut_budgets=("4:2",),
        rivals=("reuse",),
        pictures=12,
        seeds=2,
        batch=12,
        out=out,
        json=True,
    )


def test_quality(tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _bench(tiny_scenes, tmp_path).run() == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["vanilla-2", "vanilla-4", "shortcut-4:2", "reuse-4:2"]
    assert rows["shortcut-4:2"]["calls"] == {
        "backbone": 2,
        "shortcut": 2,
        "head": 4,
        "decoder": 1,
        "branches": 2,
    }
    assert rows["vanilla-4"]["agreement"] is None
    assert 0 < rows["shortcut-4:2"]["agreement"]["mean"] < 1
    assert rows["reuse-4:2"]["gflop_per_picture"] < rows["shortcut-4:2"]["gflop_per_picture"]
    assert rows["shortcut-4:2"]["equal_cost_score"] is not None
    assert "--caching reuse --full-steps 2" in rows["reuse-4:2"]["command"]
    assert all(row["command"].startswith("swiftmask evaluate") for row in report["rows"])
    assert (report["N"], report["seeds"]) == (12, 2)
    assert json.loads((tmp_path / "tiny-quality.json").read_text()) == report
    assert "floor" in (tmp_path / "tiny-quality.md").read_text()
    assert (tmp_path / "tiny-frontier.png").read_bytes().startswith(b"\x89PNG")


def test_quality_again_draws_nothing(
    tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = replace(_bench(tiny_scenes, tmp_path), steps=(2,), shortcut_budgets=())
    command.run()
    first = capsys.readouterr().out
    monkeypatch.setattr("swiftmask.pipeline.Pipeline.generate", None)
    command.run()
    assert capsys.readouterr().out == first


def test_quality_of_another_model_is_refused(tmp_path: Path, write_tiny_scenes: Callable[..., Path]) -> None:
    for seed in (0, 1):
        model = write_tiny_scenes(tmp_path / str(seed), seed=seed)
        command = replace(_bench(model, tmp_path / "out"), steps=(2,), shortcut_budgets=())
        if seed == 0:
            command.run()
            continue
        with pytest.raises(ValueError, match="another model"):
            command.run()


def test_a_row_alone_gives_the_same_numbers(
    tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = replace(_bench(tiny_scenes, tmp_path / "bench"), steps=(2,), rivals=(), seeds=1)
    command.run()
    expected = json.loads(capsys.readouterr().out)["rows"][1]
    alone = Evaluate(
        model=str(tiny_scenes),
        steps=4,
        shortcut="auto",
        full_steps=2,
        pictures=12,
        seeds=1,
        batch=12,
        out=tmp_path / "alone",
        json=True,
    )
    assert alone.command() == expected["command"]
    assert alone.run() == 0
    got = json.loads(capsys.readouterr().out)["rows"][0]
    for key in ("name", "score", "fd_scenes", "calls", "gflop_per_picture"):
        assert got[key] == expected[key]
    assert (tmp_path / "alone" / "evaluate-shortcut-4-2.json").exists()


def test_a_table_is_printed(tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Evaluate(model=str(tiny_scenes), steps=2, pictures=4, seeds=1, out=tmp_path).run()
    printed = capsys.readouterr().out
    assert "vanilla-2" in printed
    assert "N = 4" in printed


@pytest.mark.parametrize("text", ["16", "16:", "a:b", "4:8", "4:0", "16:-1"])
def test_wrong_budgets(text: str) -> None:
    with pytest.raises(ValueError, match=r"16:4|full steps"):
        parse_budget(text)


def test_mistakes_are_one_clear_line(
    tiny_scenes: Path, tmp_path: Path, write_tiny_scenes: Callable[..., Path]
) -> None:
    evaluate = Evaluate(model=str(tiny_scenes), steps=4, out=tmp_path)
    with pytest.raises(ValueError, match="needs an accelerator"):
        replace(evaluate, full_steps=2).run()
    with pytest.raises(ValueError, match="between 1 and"):
        replace(evaluate, full_steps=5, caching="reuse").run()
    with pytest.raises(ValueError, match="at least 2 pictures"):
        replace(evaluate, pictures=1).run()
    alone = write_tiny_scenes(tmp_path / "alone")
    (tmp_path / "alone" / "tiny-shortcut").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="no bundled shortcut: name one or its folder"):
        replace(evaluate, model=str(alone), shortcut="auto").run()
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
