"""`swiftmask bench` on tiny models: what is measured, resuming, any model against any reference."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import swiftmask
from swiftmask.api import load
from swiftmask.cli import measure
from swiftmask.cli.asked import Asked, is_extractor
from swiftmask.cli.bench import Bench, check_denoising, check_unguided, parse_budget
from swiftmask.cli.demo import Demo
from swiftmask.cli.errors import parse, run_safely
from swiftmask.cli.rows import Rows
from swiftmask.cli.scoring import requests_of, scenes_of
from swiftmask.core.protocol import SamplingOptions
from swiftmask.data.scenes import CLASS_NAMES
from swiftmask.evaluate.study import Row
from swiftmask.methods.speed_rl import TuningConfig, make_policy, write_policy
from swiftmask.methods.speed_rl.policy import trained_parameters
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.meissonic import Meissonic
from swiftmask.pipeline import Pipeline
from tests.toy_models import caption_folder
from tests.toy_readers import write_blind_reader

TUNING = TuningConfig(targets=r"transformer\.mlm_layer\..*", method="full")


def _bench(model: Path | str, out: Path) -> Bench:
    return Bench(
        model=str(model),
        steps=(2,),
        budgets=("4:2",),
        baselines=("reuse",),
        unguided=("2",),
        images=12,
        seeds=1,
        batch_size=12,
        shown=2,
        out=out,
        json=True,
    )


def _rows(bench: Bench, base: Pipeline) -> dict[str, Row]:
    """Rows by name, without anything generated."""
    fitted = bench._fitted_to(base)
    rows = [Rows(base).row(one, reference=reference) for one, reference in fitted._settings(base)]
    return {row.name: row for row in rows}


def test_bench(
    tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = replace(_bench(tiny_scenes, tmp_path), temperatures=(0.5,), seeds=2)
    assert command.run() == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in report["rows"]}
    names = ["vanilla-2", "vanilla-4", "shortcut-4:2", "reuse-4:2", "unguided-2"]
    assert list(rows) == [*names, "temperature-0.5-2", "temperature-0.5-4"]
    shortcut = rows["shortcut-4:2"]
    assert shortcut["calls"] == {"backbone": 2, "shortcut": 2, "head": 4, "decoder": 1, "branches": 2}
    assert "tokens_kept" not in rows["vanilla-4"]["values"]
    assert 0 < shortcut["values"]["tokens_kept"]["mean"] < 1
    assert rows["reuse-4:2"]["gflop"] < shortcut["gflop"]
    assert {"score", "fd_scenes"} <= shortcut["equal_cost"].keys()
    assert [quantity["key"] for quantity in report["quantities"]][:2] == ["score", "fd_scenes"]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert report["command"] == measure.command_of("bench", command)
    again = parse(Bench, shlex.split(report["command"])[2:], prog="bench")
    assert again == replace(command, json=False, shown=6)
    assert (tmp_path / "report.md").read_text().startswith("## Quality and cost of tiny")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert '"row": "shortcut-4:2", "grid": [6, 6]' in page
    assert "--only shortcut-4:2" in page

    monkeypatch.setattr("swiftmask.evaluate.study.Study._complete", None)  # nothing may be measured again
    monkeypatch.setattr("swiftmask.evaluate.processes.Processes.share", lambda self, work: [])
    assert command.run() == 0
    assert json.loads(capsys.readouterr().out) == report
    alone = replace(command, only=("shortcut-4:2",), out=tmp_path / "alone")
    monkeypatch.undo()
    assert alone.run() == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    for key in ("name", "calls", "gflop"):
        assert row[key] == shortcut[key]
    assert row["values"]["score"] == shortcut["values"]["score"]

    another = shutil.copytree(tiny_scenes, tmp_path / "another")
    with pytest.raises(ValueError, match="report of another model .*tiny, this is another.*--overwrite"):
        replace(command, model=str(another)).run()
    with pytest.raises(ValueError, match=r"report of other settings .*temperatures 0.5.*--overwrite"):
        replace(command, temperatures=()).run()
    with pytest.raises(ValueError, match="report of other settings .swiftmask bench"):
        Demo(model=str(tiny_scenes), out=tmp_path).run()
    assert json.loads((tmp_path / "report.json").read_text()) == report


class _Thirds(nn.Module):
    """Mean colour of the left, the middle and the right of an image."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, (1, 3)).flatten(1)


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """Real images of another size, with captions, and an extractor `thirds.pt` beside them."""
    folder = tmp_path / "real"
    folder.mkdir()
    for index in range(24):
        pixels = torch.randint(0, 255, (8, 12, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index:02d}.png")
        (folder / f"{index:02d}.txt").write_text(f"a small {['red', 'blue'][index % 2]} circle")
    torch.jit.script(_Thirds()).save(tmp_path / "thirds.pt")
    return folder


def test_any_model_against_real_images(
    tiny_folder: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that knows nothing of Scenes, an extractor, a reward of the user's own, and differences."""
    (tmp_path / "mine.py").write_text("def score(images, prompts):\n    return images.mean(dim=(1, 2, 3))\n")
    asked = Asked(
        reference=str(reference), scorer=(f"thirds={tmp_path / 'thirds.pt'}", "mine:score", "pixels")
    )
    command = replace(_bench(tiny_folder, tmp_path / "out"), asked=asked)
    there = Path.cwd()
    try:
        os.chdir(tmp_path)
        assert command.run() == 0
    finally:
        os.chdir(there)
    said = capsys.readouterr()
    report = json.loads(said.out)
    keys = [quantity["key"] for quantity in report["quantities"]]
    assert keys[:2] == ["fd_thirds", "kid_thirds"]
    assert {"mine-score", "pixel_difference", "tokens_kept", "difference_thirds"} <= set(keys)
    assert report["floors"]["fd_thirds"]["mean"] > 0
    assert "24 real images (real)" in report["notes"][0]
    assert "fewer than 2,048 images is mostly their number" in said.err
    assert "real images (12x8) are cropped and resized to 8x8" in said.err
    names = [row["name"] for row in report["rows"]]
    assert names == ["vanilla-2", "vanilla-4", "reuse-4:2", "unguided-2"]
    assert f"--reference {reference}" in report["command"]
    assert "class 4, seed 0" in (tmp_path / "out" / "report.html").read_text()


def test_prompts_of_a_file_or_of_the_reference(prompt_model: Path, reference: Path, tmp_path: Path) -> None:
    base = load(prompt_model)
    assert scenes_of(base) is not None
    other = replace(base, folder=None)
    captions = requests_of(other, Asked(reference=str(reference)))
    assert captions.entries == ("a small red circle", "a small blue circle")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    assert requests_of(other, Asked(prompts=tmp_path / "prompts.txt")).names == (
        "a red circle",
        "a blue square",
    )
    with pytest.raises(ValueError, match="name a file of them"):
        requests_of(other, Asked())
    with pytest.raises(ValueError, match="leave out --classes"):
        requests_of(other, Asked(classes=3))


def test_readers_of_columns_score_prompts_and_classes(
    prompt_model: Path, tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a reader that sees nothing names is known beforehand; a second one has a column of its own."""
    colours = {"red": 0.6, "blue": 0.4} | {f"colour {i}": 1e-6 for i in range(10)}
    first = write_blind_reader(tmp_path / "first", {"colour": colours, "kind": {"a": 0.5, "b": 0.5}}, "first")
    second = write_blind_reader(tmp_path / "second", {"colour": {"blue": 0.9, "red": 0.1}}, "second")
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"prompt": f"a {colour} circle", "colour": colour} for colour in ("red", "blue")]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = Asked(prompts=prompts, scorer=(f"reader={first}", f"reader={second}"))
    command = replace(
        _bench(prompt_model, tmp_path / "out"), asked=asked, baselines=(), budgets=(), unguided=()
    )
    assert command.run() == 0
    report = json.loads(capsys.readouterr().out)
    values = {key: spread["mean"] for key, spread in report["rows"][0]["values"].items()}
    assert values["first"] == pytest.approx(0.5, abs=1e-4)
    assert values["second"] == pytest.approx(0.5, abs=1e-4)
    shares = {key: values[key] for key in values if "_top" in key}
    assert shares == {"colour_top1_first": 0.5, "colour_top5_first": 1.0, "colour_top1_second": 0.5}
    tops = [quantity for quantity in report["quantities"] if quantity["key"] == "colour_top5_first"]
    assert (tops[0]["label"], tops[0]["group"]) == ("colour top-5", "Read by first")
    names = {name: 1.0 / len(CLASS_NAMES) for name in CLASS_NAMES}
    scenes = write_blind_reader(tmp_path / "scenes", {"class": names}, "scenes-reader")
    of_classes = replace(
        _bench(tiny_scenes, tmp_path / "classes"),
        asked=Asked(scorer=(f"reader={scenes}",), classes=5),
        baselines=(),
        budgets=(),
        unguided=(),
    )
    assert of_classes.run() == 0
    values = json.loads(capsys.readouterr().out)["rows"][0]["values"]
    assert values["scenes-reader"]["mean"] == pytest.approx(1 / len(CLASS_NAMES), abs=1e-4)
    with pytest.raises(ValueError, match="reads class, and nothing says these of 'a red circle'"):
        replace(command, asked=replace(asked, scorer=(f"reader={scenes}",)), out=tmp_path / "no").run()


@pytest.mark.slow
def test_two_processes_find_the_same(tiny_folder: Path, reference: Path, tmp_path: Path) -> None:
    """Parts of 256 images are shared."""
    asked = Asked(reference=str(reference), scorer=(str(tmp_path / "thirds.pt"),))
    command = replace(_bench(tiny_folder, tmp_path / "out"), asked=asked, images=300)
    words = shlex.split(measure.command_of("bench", command))[1:]
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
        for row in rows:
            del row["ms"], row["peak_memory_bytes"]
        found.append(rows)
    assert len(found[0]) > 3
    assert found[0] == found[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a disk that is always full")
def test_a_full_disk_is_one_clear_line_and_what_was_measured_stays(
    tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = replace(_bench(tiny_scenes, tmp_path), budgets=(), unguided=())
    full = tmp_path / f".report.json.{os.getpid()}.partial"
    full.symlink_to("/dev/full")
    assert run_safely(command.run, debug=False) == 2
    said = f"swiftmask: no space left on device: {tmp_path / 'report.json'}"
    assert capsys.readouterr().err.splitlines()[-1] == said
    assert not full.is_symlink()
    monkeypatch.setattr("swiftmask.evaluate.study.reset_peak_memory", None)  # nothing is measured again
    assert command.run() == 0
    assert json.loads(capsys.readouterr().out)["N"] == 12


def test_rows_without_guidance(tiny_scenes: Path, tmp_path: Path) -> None:
    base, bench = load(tiny_scenes), replace(_bench(tiny_scenes, tmp_path), unguided=("2", "4:2"))
    rows = _rows(bench, base)
    assert list(rows)[-2:] == ["unguided-2", "unguided+shortcut-4:2"]
    assert 1.9 < rows["vanilla-2"].flops / rows["unguided-2"].flops < 2
    assert rows["unguided+shortcut-4:2"].calls["branches"] == 1
    with pytest.raises(ValueError, match="needs a shortcut"):
        _rows(replace(bench, shortcut="none"), base)
    plain = replace(base, sampling=SamplingOptions(guidance=1.0))
    with pytest.raises(ValueError, match="tiny generates without guidance: leave out --unguided"):
        _rows(bench, plain)


def test_rows_with_other_temperatures_and_schedules(tiny_scenes: Path, tmp_path: Path) -> None:
    base = load(tiny_scenes)
    bench = replace(_bench(tiny_scenes, tmp_path), temperatures=(0.5,), schedule_powers=(2.0,), steps=(4,))
    rows = _rows(replace(bench, unguided=()), base)
    names = ["vanilla-4", "power-2-4", "temperature-0.5-4", "temperature-0.5+power-2-4"]
    assert [name for name in rows if "4:" not in name] == names
    own, early, sharp, _ = (rows[name] for name in names)
    assert len({rows[name].fingerprint for name in names}) == 4
    assert early.flops < own.flops  # the head is asked for the tokens that are still masked
    tokens = [row.generate([0, 1], [0, 1]).tokens_BL for row in (sharp, own)]
    assert not tokens[0].equal(tokens[1])
    with pytest.raises(ValueError, match="schedule_power must be a number between 0.1 and 10, got 0"):
        _rows(replace(bench, schedule_powers=(0.0,)), base)


def test_what_the_model_does_anyway_is_one_row(tiny_scenes: Path, tmp_path: Path) -> None:
    base = load(tiny_scenes)
    bench = replace(_bench(tiny_scenes, tmp_path), temperatures=(1.0,), schedule_powers=(1.0,))
    from swiftmask.evaluate.processes import Processes
    from swiftmask.evaluate.study import Sample

    _, rows = bench.prepared(base, Rows(base), Sample(num_images=12, num_seeds=1), Processes())
    assert [row.name for row in rows][:2] == ["vanilla-2", "vanilla-4"]
    assert not any("temperature" in row.name or "power" in row.name for row in rows)


@pytest.mark.parametrize("text", ["0", "x", "4:", "4:8"])
def test_wrong_rows_without_guidance(text: str) -> None:
    check_unguided(["16", "16:4"])
    with pytest.raises(ValueError, match=r"16:4|full steps"):
        check_unguided([text])


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
    tiny_folder: Path, tiny_scenes: Path, tmp_path: Path, write_tiny_scenes: Callable[..., Path]
) -> None:
    command = _bench(tiny_folder, tmp_path)
    with pytest.raises(ValueError, match="nothing scores the images of .*--reference FOLDER"):
        command.run()
    with pytest.raises(ValueError, match="does not generate Scenes.*--reference FOLDER --scorer dinov2=PATH"):
        replace(command, asked=Asked(scorer=("scenes",))).run()
    with pytest.raises(FileNotFoundError, match="no such reference"):
        replace(command, asked=Asked(reference=str(tmp_path / "none"))).run()
    with pytest.raises(FileNotFoundError, match="--scorer dinov2=nowhere: there is no nowhere"):
        replace(command, asked=Asked(scorer=("dinov2=nowhere",))).run()
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="compares with real images: add --reference"):
        replace(command, asked=Asked(scorer=(f"dinov2={tmp_path / 'there'}",))).run()
    with pytest.raises(ValueError, match="knows 7"):
        replace(command, asked=Asked(classes=8, scorer=("clip",))).run()
    with pytest.raises(ValueError, match="generates classes: leave out --prompts"):
        replace(command, asked=Asked(prompts=tmp_path / "prompts.txt")).run()
    with pytest.raises(ValueError, match="no row is called that, there are vanilla-2"):
        replace(_bench(tiny_scenes, tmp_path), only=("vanilla-3",)).run()
    with pytest.raises(ValueError, match="at least 2 images"):
        replace(command, images=1).run()
    alone = write_tiny_scenes(tmp_path / "alone")
    with pytest.raises(ValueError, match="has no marval of its own: name one, or its folder"):
        measure.own(str(alone), "auto", "marval")
    with pytest.raises(ValueError, match=r"or train it \(swiftmask train maskgit-scenes-speed-rl\)$"):
        measure.own(str(tmp_path / "maskgit-scenes"), "auto", "speed-rl")


def test_scorers_are_told_apart_by_their_names(tmp_path: Path) -> None:
    assert is_extractor(f"dinov2={tmp_path}")
    assert is_extractor("inception.pt")
    assert is_extractor("efficientnet-lite0")
    for text in (
        "pickscore",
        "hps=weights.pt",
        "http://127.0.0.1:8765",
        "my_module:score",
        "pixels",
        "scenes",
    ):
        assert not is_extractor(text)


def test_several_scorers_and_options_given_twice(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "m",
        "--batch-size",
        "7",
        "--budgets",
        "8:2",
        "--scorer",
        "scenes",
        "pixels",
        "--steps",
        "2",
    ]
    command = parse(Bench, words, prog="bench")
    assert (command.batch_size, command.budgets, command.steps) == (7, ("8:2",), (2,))
    assert command.asked.scorer == ("scenes", "pixels")
    with pytest.raises(ValueError, match="--scorer is given twice: give all its values after one --scorer"):
        parse(Bench, [*words, "--scorer", "clip"], prog="bench")
    with pytest.raises(SystemExit):
        parse(Bench, ["m", "--classes", "x"], prog="bench")
    assert "--classes must be a whole number between 1 and" in capsys.readouterr().err


def test_rivals_are_those_that_the_model_can_do(tiny_scenes: Path, golden_dimoo: LuminaDiMOO) -> None:
    anywhere = ("reuse", "extrapolation-1", "extrapolation-2")
    assert measure.baselines_of(load(tiny_scenes)) == anywhere
    assert measure.baselines_of(Pipeline(golden_dimoo)) == (*anywhere, "ml-cache", "ml-cache-refreshed")


@pytest.fixture(scope="module")
def prompt_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Meissonic with the words of captions, 4x4 tokens, and weights tuned from it beside it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    caption_folder("meissonic", folder)
    policy = make_policy(Meissonic.from_pretrained(folder), TUNING)
    with torch.no_grad():
        for parameter in trained_parameters(policy).values():
            parameter.add_(torch.randn_like(parameter))
    write_policy(folder.with_name("tiny-speed-rl"), policy, tuning=TUNING, provenance={}, steps=2)
    return folder


def test_captions_of_scenes_and_tuned_weights(
    prompt_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = replace(
        _bench(prompt_model, tmp_path),
        baselines=(),
        budgets=(),
        unguided=(),
        steps=(3,),
        speed_rl_steps=(1, 2),
        temperatures=(0.5,),
        images=6,
    )
    assert command.run() == 0
    report = json.loads(capsys.readouterr().out)
    tuned = [f"temperature-0.5+{name}" for name in ("tiny-speed-rl-1", "tiny-speed-rl-2")]
    names = ["vanilla-3", "temperature-0.5-3", "tiny-speed-rl-1", "tiny-speed-rl-2", *tuned]
    assert sorted(row["name"] for row in report["rows"]) == sorted(names)
    values = report["rows"][0]["values"]
    assert 0 <= values["training_reward"]["mean"] <= 1
    assert values["diversity"]["mean"] > 0
    base = swiftmask.load(prompt_model)
    wide = replace(base, model=base.model.sized(8, 16))  # type: ignore[attr-defined]
    from swiftmask.cli.scoring import study_of
    from swiftmask.evaluate.study import Sample

    with pytest.raises(ValueError, match="Scenes are square, and tiny generates 8x16"):
        study_of(wide, Asked(), Sample(), tmp_path)
