"""`swiftmask tune`, and what its presets do to `generate` and to a pipeline."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import swiftmask
from swiftmask.cli import main
from swiftmask.cli.asked import Asked
from swiftmask.cli.rows import Rows, StepCosts
from swiftmask.cli.scoring import study_of
from swiftmask.cli.search import Found, Search
from swiftmask.cli.tune import Space, Tune, _answer
from swiftmask.core.protocol import SamplingOptions
from swiftmask.evaluate.presets import Settings, read_preset
from swiftmask.evaluate.quantities import Quantity, Spread
from swiftmask.evaluate.study import Row, Sample
from swiftmask.evaluate.tuning.halving import Goal, Tried
from swiftmask.presets import apply_settings
from swiftmask.registry import weights_name


def tune_command(model: Path, out: Path) -> Tune:
    return Tune(
        model=str(model),
        speedup=2,
        objective="fd_scenes",  # untrained, it scores 0 on few images
        space=Space(
            reference_steps=4,
            steps=(2, 4),
            baselines=("reuse",),
            guidance=(3.0,),
            temperature=(0.9, 1.0),
            choice_temperature=(),
        ),
        search_images=4,
        images=6,
        seeds=2,
        drift_images=2,
        batch_size=6,
        dtype="float32",
        out=out,
        json=True,
    )


@pytest.fixture(scope="module")
def tuned(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished search for half the cost."""
    out = tmp_path_factory.mktemp("tuned")
    assert tune_command(tiny_scenes, out).run() == 0
    return out


@pytest.fixture
def preset(tuned: Path) -> Path:
    return tuned / "tiny-speedup-2-fd_scenes-preset.json"


SCORE = Quantity(key="score", label="judge score", higher_is_better=True)


def searching(folder: Path, model: Path, space: Space) -> Search:
    base = swiftmask.load(model)
    sample = Sample(num_images=4, num_seeds=1, batch_size=4)
    study = study_of(base, Asked(), sample, folder, diverse=False, brief=True)
    return Search(
        rows_of=Rows(base), study=study, space=space, searched=sample, confirming=sample, drift_images=2
    )


@pytest.fixture(scope="module")
def search(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Search:
    space = Space(
        steps=(2, 6),
        reference_steps=6,
        baselines=("reuse",),
        shortcut="none",
        marval="none",
        speed_rl="none",
    )
    return searching(tmp_path_factory.mktemp("drift"), tiny_scenes, space)


def test_the_preset_is_within_the_bound_and_says_how_it_is_known(tuned: Path, preset: Path) -> None:
    measured = read_preset(preset).measured
    assert measured is not None
    report = json.loads((tuned / "tiny-speedup-2-fd_scenes-tuning.json").read_text())
    assert report["found"] == measured.found.name == report["confirmed"][0]["name"]
    assert report["preset"] == str(preset)
    bound = report["reference"]["gflop"] / 2 * 1.005
    assert all(row["gflop"] <= bound for row in report["confirmed"] + report["searched"])
    gflop = (measured.reference.gflop, measured.found.gflop)
    assert measured.speedup == pytest.approx(gflop[0] / gflop[1])
    assert (measured.pictures, measured.seeds) == (6, 2)
    assert measured.command.startswith("swiftmask tune")
    assert measured.reference.name == "vanilla-4"
    names = {row["name"] for row in report["searched"]}
    assert {"vanilla-2", "unguided-2", "shortcut-2:1", "reuse-4:1"} <= names
    assert any("guidance-3" in name or "temperature-0.9" in name for name in names)
    assert report["confirmed"][0]["images"] == 12


def test_the_same_search_again_draws_nothing(
    tiny_scenes: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("swiftmask.pipeline.Pipeline.generate", None)
    before = (tuned / "tiny-speedup-2-fd_scenes-tuning.json").read_text()
    assert replace(tune_command(tiny_scenes, tuned), json=False).run() == 0
    assert (tuned / "tiny-speedup-2-fd_scenes-tuning.json").read_text() == before
    printed = " ".join(capsys.readouterr().out.split())
    assert "finalists, on fresh images" in printed
    assert "asked: the best fd_scenes for at most" in printed
    assert "against vanilla-" in printed


@pytest.mark.parametrize(
    ("bound", "complaint"),
    [
        (
            {"gflop": 1e-9},
            "of 1e-09 GFLOP an image: the cheapest decode, one step without guidance, takes",
        ),
        ({"speedup": 1000}, "the cheapest decode, one step without guidance, takes 0.00"),
        ({"speedup": 6}, "nothing in 4 or more decode steps meets the bound of"),
    ],
)
def test_nothing_is_cheap_enough(
    bound: dict[str, float], complaint: str, tiny_scenes: Path, tmp_path: Path
) -> None:
    command = tune_command(tiny_scenes, tmp_path)
    hopeless = replace(command, **{"speedup": None, "space": replace(command.space, steps=(4,))} | bound)
    with pytest.raises(ValueError, match=complaint):
        hopeless.run()
    assert not list(tmp_path.iterdir())


def test_finalists_that_lose_too_much_are_no_answer(search: Search, tmp_path: Path) -> None:
    goal = Goal(cost=1e12, objective=SCORE, max_loss=0.01)
    dear, cheap = (search.rows_of.row(Settings(steps=steps)) for steps in (4, 2))
    found = Found(
        finalists=[_tried(cheap, loss=0.05)],
        best_full=_tried(dear, loss=0.0),
        reference=_tried(dear, loss=0.0),
    )
    assert not goal.met_by(found.finalists[0])
    said = _answer(found, None, tmp_path / "preset.json")
    assert said.startswith("nothing meets the bound; nearest is vanilla-2: 1.99 times less than vanilla-4")
    assert "5.0 % (± 0.2)" in said
    assert goal.met_by(_tried(cheap, loss=0.009))


def _tried(row: Row, *, loss: float) -> Tried:
    return Tried(
        row=row,
        images=12,
        values={"score": Spread(0.9, 0.01)},
        loss=Spread(loss, 0.002),
        cost=row.flops,
        ms=1.0,
    )


@pytest.mark.parametrize("bound", [{"speedup": 1.3}, {"speedup": 1.1, "time": True}])
def test_any_model_against_real_images(
    bound: dict[str, float], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that knows nothing of Scenes, in the features of the network that is at hand."""
    (tmp_path / "real").mkdir()
    for index in range(12):
        pixels = torch.randint(0, 255, (8, 12, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "real" / f"{index}.png")
    command = tune_command(tiny_folder, tmp_path / "out")
    command = replace(
        command,
        asked=Asked(reference=str(tmp_path / "real"), scorer=("scenes",)),
        objective=None,
        search_images=10,
        images=10,
        space=replace(command.space, temperature=()),
        **bound,  # type: ignore[arg-type]
    )
    code = command.run()
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["found"] else 1)
    assert report["objective"] == "fd_scenes"
    assert {"fd_scenes"} == set(report["confirmed"][0]["values"])
    if code == 0:
        confirmed = read_preset(report["preset"]).measured
        assert confirmed is not None and confirmed.objective == "fd_scenes"
    with pytest.raises(ValueError, match="--objective sharpness: expected one of fd_scenes"):
        replace(command, objective="sharpness").run()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"speedup": None}, "nothing to tune for"),
        ({"gflop": 1.0}, "give one"),
        ({"speedup": None, "gflop": 1.0, "time": True}, "--time bounds milliseconds"),
    ],
)
def test_mistakes(tiny_scenes: Path, tmp_path: Path, options: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(tune_command(tiny_scenes, tmp_path), **options).run()  # type: ignore[arg-type]


def test_a_preset_on_a_pipeline(tiny_scenes: Path, preset: Path) -> None:
    base, found = swiftmask.load(tiny_scenes), read_preset(preset)
    fast, settings, measured = swiftmask.apply_preset(base, preset), found.settings, found.measured
    assert fast.steps == settings.steps and measured is not None
    assert fast.flops(fast.schedule()) == pytest.approx(measured.found.gflop * 1e9)
    as_given = apply_settings(base, settings).generate([3], seeds=[5])
    assert torch.equal(fast.generate([3], seeds=[5]).trajectory.tokens_BL, as_given.trajectory.tokens_BL)
    in_half = swiftmask.load(tiny_scenes, dtype="bfloat16")
    assert swiftmask.apply_preset(in_half, preset).steps == settings.steps
    with pytest.raises(ValueError, match="accelerated already"):
        swiftmask.apply_preset(swiftmask.accelerate(base, caching="reuse"), preset)


def test_a_preset_of_another_model_is_refused(
    tmp_path: Path, preset: Path, write_tiny_scenes: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_tiny_scenes(tmp_path, seed=1)
    with pytest.raises(SystemExit) as stop:
        main(["generate", str(other), "0", "--preset", str(preset), "--out", str(tmp_path / "pictures")])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert len(said.strip().splitlines()) == 1
    assert "the preset is for tiny" in said
    assert not (tmp_path / "pictures").exists()


def test_an_accelerator_trained_anew_is_refused(tiny_scenes: Path, preset: Path) -> None:
    stale = replace(read_preset(preset), accelerated_fingerprint="another")
    with pytest.raises(ValueError, match="has other weights or settings now"):
        swiftmask.apply_preset(swiftmask.load(tiny_scenes), stale)
    swiftmask.apply_preset(
        swiftmask.load(tiny_scenes), stale, beside=Settings(caching="extrapolation-1", full_steps=1)
    )


def test_generate_with_a_preset(tiny_scenes: Path, tmp_path: Path, preset: Path) -> None:
    given = ["generate", str(tiny_scenes), "0", "--preset", str(preset), "--out", str(tmp_path)]
    settings = read_preset(preset).settings
    drawn = _settings_drawn_with(given, tmp_path)
    assert drawn["steps"] == settings.steps
    assert drawn["sampling"]["temperature"] == settings.sampling.temperature
    override = "--overwrite --guidance 7 --caching extrapolation-1 --steps 3 --full-steps 2".split()
    drawn = _settings_drawn_with([*given, *override], tmp_path)
    assert (drawn["steps"], drawn["accelerator"]) == (3, "extrapolation-1")
    assert len(drawn["full_steps"]) == 2
    assert drawn["sampling"]["guidance"] == 7


def _settings_drawn_with(arguments: list[str], out: Path) -> dict:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    return json.loads((out / "generate.json").read_text())["settings"]


def test_a_sum_of_steps_costs_what_the_decode_costs(search: Search) -> None:
    costs, base = StepCosts(), search.rows_of.base
    for settings in (
        Settings(steps=3),
        Settings(steps=3, shortcut=f"{base.folder}-shortcut", full_steps=(0, 2)),
        Settings(steps=3, sampling=SamplingOptions(guidance=1.0)),
    ):
        pipeline = apply_settings(base, settings)
        schedule = pipeline.schedule()
        assert costs.total(pipeline, schedule) == pipeline.flops(schedule)


def test_budgets_under_a_bound_on_cost_and_on_loss(search: Search) -> None:
    reference = search.rows_of.flops(Settings(steps=6))
    for_cost = {one.name for one in search.budgets(Goal(cost=reference / 2, objective=SCORE))}
    assert for_cost == {"vanilla-2", "vanilla-3", "unguided-2", "reuse-2:1", "reuse-6:2"}
    bounded = Goal(cost=reference * 0.98, objective=SCORE, max_loss=0.01)
    for_loss = {one.name for one in search.budgets(bounded)}
    assert {"reuse-6:3", "reuse-6:4"} < for_loss
    assert "vanilla-6" not in for_loss, "the reference is no answer to how it could be cheaper"


def test_placements_of_a_candidate(search: Search) -> None:
    uniform = search.rows_of.row(Settings(steps=6, caching="reuse", full_steps=3))
    assert uniform.name == "reuse-6:3"
    others = list(search._placements(uniform))
    moved = ("front-loaded", "feature-drift", "token-drift")
    assert {one.name for one in others} <= {f"reuse-6:3 {placement}" for placement in moved}
    placed = [one.settings.full_steps for one in others]
    assert all(isinstance(full, tuple) and len(full) == 3 and full != (0, 2, 4) for full in placed)
    assert len(set(placed)) == len(placed) > 0
    kept = list(search.study.folder.glob("*-drift-reuse-6-*.json"))
    assert len(kept) == 2
    kept[0].write_text("[[1]")
    with pytest.raises(ValueError, match=kept[0].name):
        search.drift(uniform.settings, kept[0].name.rpartition("-reuse")[0])
    looking_back = search.rows_of.row(Settings(steps=6, caching="extrapolation-1", full_steps=3))
    names = [one.name for one in search._placements(looking_back)]
    assert names == ["extrapolation-1-6:3 front-loaded"]


def test_the_sampling_grid_leaves_out_what_the_model_does_anyway() -> None:
    own = SamplingOptions(guidance=2.0, temperature=1.0)

    def grid(guided: bool = True, **values: tuple[float, ...]) -> list[SamplingOptions]:
        space = replace(Space(schedule_power=()), **values)  # type: ignore[arg-type]
        return space.sampling(own, guided=guided)

    assert grid(guidance=(2.0, 3.0), temperature=(1.0,)) == [SamplingOptions(guidance=3.0)]
    assert grid(guided=False, guidance=(3.0,)) == grid() == []
    three = grid(guidance=(1.5, 2.0), temperature=(0.9, 1.0), choice_temperature=(5.0, 10.0))
    assert len(three) == 8
    assert grid(schedule_power=(1.0, 2.0)) == [SamplingOptions(schedule_power=2.0)]


def test_what_is_changed_is_in_the_name(search: Search) -> None:
    reuse = Settings(steps=6, caching="reuse", full_steps=3)
    warmer = replace(reuse, sampling=SamplingOptions(temperature=0.9))
    moved = search.placed(warmer, 3, "front-loaded")
    assert (
        search.rows_of.row(moved, placement="front-loaded").name == "temperature-0.9+reuse-6:3 front-loaded"
    )
    assert weights_name(Path("runs/mine/model")) == "mine"
