"""MAR and MARVAL on the command line: drawing, the rows of a study, and the scripts that compare variants."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

import swiftmask
from swiftmask.cli import main, measure
from swiftmask.cli.bench import Bench, parse_annealing
from swiftmask.cli.rows import Rows
from swiftmask.evaluate.presets import Settings
from swiftmask.registry import weights_name

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def drawn(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """What `swiftmask generate --json` says."""
    with pytest.raises(SystemExit) as stop:
        main(["generate", *(str(argument) for argument in arguments), "--json"])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    return json.loads(captured.out)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_student_draws_and_goes_with_caching(
    tiny_mar_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (tiny_mar_scenes, "red circle", "--steps", 2, "--out", tmp_path, "--overwrite")
    teacher = drawn(capsys, *common, "--denoising-steps", 4, 2)
    assert teacher["cost"]["calls_per_picture"]["head"] == 6
    assert "marval" not in teacher["settings"]
    student = f"{tiny_mar_scenes}-marval"
    fast = drawn(capsys, *common, "--marval", student)
    assert fast["cost"]["calls_per_picture"] == {"backbone": 2, "head": 2, "decoder": 1, "branches": 1}
    assert fast["drawn"] == 1, "the teacher's image was taken for the student's"
    both = drawn(capsys, *common, "--marval", student, "--caching", "reuse", "--full-steps", 1)
    assert both["cost"]["calls_per_picture"]["reuse"] == 1
    assert both["settings"]["marval"] == student


@pytest.fixture(scope="module")
def results(tiny_mar_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `swiftmask bench` wrote."""
    out = tmp_path_factory.mktemp("results")
    command = Bench(
        model=str(tiny_mar_scenes),
        steps=(2,),
        denoising_steps=("3",),
        ddim_steps=("1", "1x2"),
        disa=("4:2",),
        marval=("auto",),
        marval_steps=(1, 2),
        images=4,
        seeds=1,
        batch_size=4,
        budgets=(),
        baselines=(),
        unguided=(),
        shown=1,
        out=out,
    )
    assert command.run() == 0
    return out


def test_rows_of_a_diffusion_head(results: Path) -> None:
    report = json.loads((results / "report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    head_calls = {name: (row["calls"]["backbone"], row["calls"]["head"]) for name, row in rows.items()}
    assert head_calls == {  # three ancestral steps are the model's own: measured once, as vanilla
        "vanilla-2": (2, 6),
        "disa-2x4-2": (2, 4 + 2),
        "ddim-2x1": (2, 2),
        "ddim-1x2": (1, 2),
        "tiny-mar-marval-1": (1, 1),
        "tiny-mar-marval-2": (2, 2),
    }
    assert rows["tiny-mar-marval-2"]["calls"]["branches"] == 1
    assert not any("tokens_kept" in row["values"] for row in rows.values())
    assert "--ddim-steps 1 1x2 --disa 4:2" in report["command"]


def test_head_calls_have_a_column_of_their_own(results: Path) -> None:
    lines = (results / "report.md").read_text().splitlines()
    first = next(line for line in lines if line.startswith("| vanilla-2"))
    heading = next(line for line in lines if line.startswith("| row"))
    place = heading.split(" | ").index("head calls")
    assert first.split(" | ")[place - 1 : place + 1] == ["2", "6"]
    assert len(first.split(" | ")) == len(heading.split(" | "))


def test_a_student_under_a_rival_is_one_series(tiny_mar_scenes: Path) -> None:
    student = measure.own(str(tiny_mar_scenes), "auto", "marval")
    way = Settings(steps=2, marval=student, caching="reuse", full_steps=1)
    row = Rows(swiftmask.load(tiny_mar_scenes)).row(way)
    assert (row.name, row.series) == ("tiny-mar-marval+reuse-2:1", "tiny-mar-marval+reuse")


def test_a_student_in_a_run_is_called_like_the_run(tmp_path: Path) -> None:
    assert weights_name(tmp_path / "head-only" / "model") == "head-only"
    assert weights_name(Path("mar-scenes-marval")) == "mar-scenes-marval"


@pytest.mark.parametrize("text", ["50", "50:", ":5", "a:b", "-1:5"])
def test_wrong_annealing(text: str) -> None:
    with pytest.raises(ValueError, match=r"FIRST:LAST, such as 50:5, got"):
        parse_annealing(text)


def test_ablations_write_one_table(
    tiny_mar_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["training.batch_size=4", "training.log_every=1", "source.num_images=24"]
    arguments = ["--teacher", tiny_mar_scenes, "--variants", "start", "head-only", "--updates", 2]
    arguments += ["--steps", 1, "--images", 4, "--seeds", 1, "--out", tmp_path, "--set", *small]
    monkeypatch.setattr(sys, "argv", ["marval_ablations.py", *map(str, arguments)])
    script("marval_ablations").main()
    content = json.loads((tmp_path / "ablations.json").read_text())
    assert content["label"].startswith("short runs: 2 updates")
    assert content["teacher"]["calls"]["head"] == 3
    first, second = content["variants"]
    assert (first["variant"], first["settings"]) == ("start", [])
    assert (second["variant"], second["settings"]) == ("head-only", ["part=head"])
    assert second["calls"] == {"backbone": 1, "head": 1, "decoder": 1, "branches": 1}
    assert "student_loss" in second["last_metrics"]
    assert second["values"]["score"]["mean"] >= 0
    teacher, start, head_only = (tmp_path / "ablations.md").read_text().splitlines()[2:]
    assert teacher.startswith("| teacher |  | ")
    assert f"| head-only | `part=head` | {second['values']['score']['mean']:.3f} ± 0.000 |" in head_only
    assert start.startswith("| start |  | ")
    assert len(list(tmp_path.rglob("rows-*.safetensors"))) == 1, "one cache for all variants"
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "teacher",
        "start",
        "head-only",
    ]


def test_every_ablation_names_settings_of_the_recipe() -> None:
    from swiftmask.cli.overrides import override
    from swiftmask.recipes import mar_scenes_marval

    recipe = mar_scenes_marval.recipe()
    start, variants = (getattr(script("marval_ablations"), name) for name in ("START", "VARIANTS"))
    changed = [override(recipe, [*start, *settings]) for settings in variants.values()]
    taken = ("timesteps-from-300", "narrow-masks")  # what the recipe has now
    assert override(recipe, [*start, *(setting for name in taken for setting in variants[name])]) == recipe
    assert len({repr(other) for other in changed}) == len(variants), "two variants are the same"


def test_sheet_has_a_line_for_each_way(
    tiny_mar_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [tiny_mar_scenes, "--marval", "auto", "--ddim-steps", 2, "--steps", 1, "--images", 3]
    arguments += ["--scale", 1, "--out", tmp_path / "new" / "sheet.png"]
    monkeypatch.setattr(sys, "argv", ["marval_sheet.py", *map(str, arguments)])
    script("marval_sheet").main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["vanilla", "ddim", "tiny-mar-marval"]
    assert Image.open(tmp_path / "new" / "sheet.png").size == (3 * 68 + 4, 3 * 68 + 4)
