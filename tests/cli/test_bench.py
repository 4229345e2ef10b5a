"""`swiftmask bench` and `swiftmask evaluate` on a tiny model."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from swiftmask.api import load
from swiftmask.cli import measure
from swiftmask.cli.bench import BenchQuality, check_denoising, check_unguided, parse_budget
from swiftmask.cli.errors import run_safely
from swiftmask.cli.evaluate import Evaluate
from swiftmask.core.protocol import SamplingOptions
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.pipeline import Pipeline


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


def test_the_command_says_that_no_rivals_were_wanted(tmp_path: Path) -> None:
    command = _bench(tmp_path, tmp_path)
    assert "--rivals reuse --pictures" in command.command()
    assert "--rivals --pictures" in replace(command, rivals=()).command()
    assert "--rivals" not in replace(command, rivals=None).command()


def test_quality_again_draws_nothing(
    tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = replace(_bench(tiny_scenes, tmp_path), steps=(2,), shortcut_budgets=())
    command.run()
    first = capsys.readouterr().out
    monkeypatch.setattr("swiftmask.pipeline.Pipeline.generate", None)
    command.run()
    assert capsys.readouterr().out == first


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a disk that is always full")
def test_a_full_disk_is_one_clear_line_and_what_was_measured_stays(
    tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = replace(_bench(tiny_scenes, tmp_path), steps=(2,), shortcut_budgets=())
    full = tmp_path / f".tiny-quality.json.{os.getpid()}.partial"
    full.symlink_to("/dev/full")
    assert run_safely(command.run, debug=False) == 2
    said = f"swiftmask: no space left on device: {tmp_path / 'tiny-quality.json'}"
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert not full.is_symlink()
    monkeypatch.setattr("swiftmask.pipeline.Pipeline.generate", None)  # nothing is drawn a second time
    assert command.run() == 0
    assert json.loads(capsys.readouterr().out)["N"] == 12


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


def test_rows_without_guidance(tiny_scenes: Path, tmp_path: Path) -> None:
    base, bench = load(tiny_scenes), replace(_bench(tiny_scenes, tmp_path), unguided=("2", "4:2"))
    rows = {way.row.name: way.row for way in bench.ways(base)}
    assert list(rows)[-2:] == ["unguided-2", "unguided+shortcut-4:2"]
    assert 1.9 < rows["vanilla-2"].flops / rows["unguided-2"].flops < 2
    assert rows["unguided+shortcut-4:2"].calls["branches"] == 1
    assert rows["unguided+shortcut-4:2"].command.count("--unguided") == 1
    assert "--unguided 2 4:2 " in bench.command()
    with pytest.raises(ValueError, match="needs a shortcut"):
        replace(bench, shortcut="none").ways(base)
    plain = replace(base, sampling=SamplingOptions(guidance=1.0))
    with pytest.raises(ValueError, match="tiny is generated without guidance: leave out --unguided"):
        bench.ways(plain)


def test_rows_at_another_temperature(tiny_scenes: Path, tmp_path: Path) -> None:
    base, bench = load(tiny_scenes), replace(_bench(tiny_scenes, tmp_path), temperatures=(0.5, 2.0))
    rows = {way.row.name: way.row for way in bench.ways(base)}
    sharp, vague, own = (rows[name] for name in ("temperature-0.5-2", "temperature-2-2", "vanilla-2"))
    assert len({row.fingerprint for row in (sharp, vague, own)}) == 3
    assert sharp.flops == own.flops
    assert "--temperature 0.5 " in sharp.command
    assert "--temperatures 0.5 2.0 " in bench.command()
    tokens = [row.draw([0, 1], [0, 1]).tokens_BL for row in (sharp, vague)]
    assert not tokens[0].equal(tokens[1])
    with pytest.raises(ValueError, match="temperature must be a number between 0.001 and 100, got 0"):
        replace(bench, temperatures=(0.0,)).ways(base)


def test_rows_with_another_schedule(tiny_scenes: Path, tmp_path: Path) -> None:
    base = load(tiny_scenes)
    bench = replace(_bench(tiny_scenes, tmp_path), temperatures=(0.5,), schedule_powers=(2.0,), steps=(4,))
    rows = {way.row.name: way.row for way in bench.ways(base)}
    names = ["vanilla-4", "power-2-4", "temperature-0.5-4", "temperature-0.5+power-2-4"]
    assert [name for name in rows if "4:" not in name] == names
    own, early, _, both = (rows[name] for name in names)
    assert len({rows[name].fingerprint for name in names}) == 4
    assert early.flops < own.flops  # the head is asked for the tokens that are still masked
    assert "--temperature 0.5 --schedule-power 2 " in both.command
    assert "--temperatures 0.5 --schedule-powers 2.0 " in bench.command()
    again = replace(bench, temperatures=(0.5, 1.0), schedule_powers=(1.0, 2.0))
    assert [way.row.name for way in again.ways(base) if "4:" not in way.row.name] == names
    with pytest.raises(ValueError, match="schedule_power must be a number between 0.1 and 10, got 0"):
        replace(bench, schedule_powers=(0.0,)).ways(base)


@pytest.mark.parametrize("text", ["0", "x", "4:", "4:8"])
def test_wrong_rows_without_guidance(text: str) -> None:
    check_unguided(["16", "16:4"])
    with pytest.raises(ValueError, match=r"16:4|full steps"):
        check_unguided([text])


def test_a_table_is_printed(tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Evaluate(model=str(tiny_scenes), steps=2, pictures=4, seeds=1, out=tmp_path).run()
    printed = capsys.readouterr().out
    assert "vanilla-2" in printed
    assert "N = 4" in printed


@pytest.mark.parametrize("text", ["16", "16:", "a:b", "4:8", "4:0", "16:-1"])
def test_wrong_budgets(text: str) -> None:
    with pytest.raises(ValueError, match=r"16:4|full steps"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0", "x", "x10", "8x", "0x10", "8x0", "8x10x2", "ten"])
def test_wrong_denoising_steps(text: str) -> None:
    with pytest.raises(ValueError, match="such as 8x10, got"):
        check_denoising([], [text], [])


@pytest.mark.parametrize("text", ["1", "8x1"])
def test_one_ancestral_denoising_step_is_refused(text: str) -> None:
    check_denoising([], [text], [])
    with pytest.raises(ValueError, match=f"take --ddim-steps {text}$"):
        check_denoising(["10", text], [], [])


@pytest.mark.parametrize("text", ["5", "x", "50:", "0:5", "50:0", "50:1", "1:5"])
def test_wrong_annealed_denoising_steps(text: str) -> None:
    check_denoising([], [], ["50:5"])
    with pytest.raises(ValueError, match=rf"such as 50:5, got '{text}'|--disa {text}: .* at least 2"):
        check_denoising([], [], [text])


def test_mistakes_are_one_clear_line(
    tiny_scenes: Path, tmp_path: Path, write_tiny_scenes: Callable[..., Path]
) -> None:
    evaluate = Evaluate(model=str(tiny_scenes), steps=4, out=tmp_path)
    with pytest.raises(ValueError, match="needs an accelerator"):
        replace(evaluate, full_steps=2).run()
    with pytest.raises(ValueError, match="between 1 and"):
        replace(evaluate, full_steps=5, caching="reuse").run()
    with pytest.raises(ValueError, match="at least 2 images"):
        replace(evaluate, pictures=1).run()
    alone = write_tiny_scenes(tmp_path / "alone")
    (tmp_path / "alone" / "tiny-shortcut").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="has no shortcut of its own: name one, or its folder"):
        replace(evaluate, model=str(alone), shortcut="auto").run()


def test_rivals_are_those_that_the_model_can_do(tiny_scenes: Path, golden_dimoo: LuminaDiMOO) -> None:
    anywhere = ("reuse", "extrapolation-1", "extrapolation-2")
    assert measure.rivals_of(load(tiny_scenes)) == anywhere
    assert measure.rivals_of(Pipeline(golden_dimoo)) == (*anywhere, "ml-cache", "ml-cache-refreshed")


def test_cachings_that_differ_in_a_rule_alone_are_rows_of_their_own(tmp_path: Path) -> None:
    base = load("dimoo-scenes")
    rivals = ("ml-cache", "ml-cache-refreshed")
    bench = replace(_bench(Path("dimoo-scenes"), tmp_path), shortcut="none", rivals=rivals, steps=(4,))
    names = [way.row.name for way in bench.ways(base)]
    assert names == ["vanilla-4", "ml-cache-4:2", "ml-cache-refreshed-4:2"]
