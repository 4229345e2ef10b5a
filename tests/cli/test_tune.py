"""`swiftmask tune`, and what its presets do to `generate` and to a pipeline."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import swiftmask
from swiftmask.cli import main
from swiftmask.cli.candidates import StepCosts, Workshop, sampling_grid
from swiftmask.cli.search import Finals, Meter, Space, budgets
from swiftmask.cli.tune import Tune, answer_of, winner_of
from swiftmask.core.protocol import SamplingOptions
from swiftmask.evaluate.presets import Settings, read_preset
from swiftmask.evaluate.subjects import Classes
from swiftmask.evaluate.summary import Spread
from swiftmask.evaluate.tuning.halving import Bounds, Candidate, Standing
from swiftmask.presets import apply_settings


def tune_command(model: Path, out: Path) -> Tune:
    return Tune(
        model=str(model),
        speedup=2,
        objective="fd_scenes",  # untrained, it scores 0 on few pictures
        reference_steps=4,
        steps=(2, 4),
        rivals=("reuse",),
        guidance=(3.0,),
        temperature=(0.9, 1.0),
        choice_temperature=(),
        search_pictures=4,
        pictures=6,
        seeds=2,
        drift_pictures=2,
        batch=6,
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
    return tuned / "tiny-speedup-2-fd-preset.json"


@pytest.fixture(scope="module")
def shop(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(
        base=swiftmask.load(tiny_scenes),
        subjects=Classes(),
        folder=tmp_path_factory.mktemp("drift"),
        drift_pictures=2,
        command="swiftmask tune",
    )


def test_the_preset_is_within_the_bound_and_says_how_it_is_known(tuned: Path, preset: Path) -> None:
    found = read_preset(preset)
    report = json.loads((tuned / "tiny-speedup-2-fd-tuning.json").read_text())
    assert report["found"] == found.measured.found.name == report["confirmed"][0]["name"]
    assert report["preset"] == str(preset)
    bound = report["reference"]["gflop_per_picture"] / 2 * 1.005
    assert all(row["gflop_per_picture"] <= bound for row in report["confirmed"] + report["searched"])
    gflop = (found.measured.reference.gflop_per_picture, found.measured.found.gflop_per_picture)
    assert found.measured.speedup == pytest.approx(gflop[0] / gflop[1])
    assert (found.measured.pictures, found.measured.seeds) == (6, 2)
    assert found.measured.command.startswith("swiftmask tune")
    assert found.measured.reference.name == "vanilla-4"
    names = {row["name"] for row in report["searched"]}
    assert {"vanilla-2", "vanilla-2 g1", "shortcut-2:1", "reuse-4:1"} <= names
    assert any(" g3" in name or " t0.9" in name for name in names)
    assert report["confirmed"][0]["pictures"] == 12


def test_the_same_search_again_draws_nothing(
    tiny_scenes: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("swiftmask.pipeline.Pipeline.generate", None)
    before = (tuned / "tiny-speedup-2-fd-tuning.json").read_text()
    assert replace(tune_command(tiny_scenes, tuned), json=False).run() == 0
    assert (tuned / "tiny-speedup-2-fd-tuning.json").read_text() == before
    printed = " ".join(capsys.readouterr().out.split())
    assert "finalists, on fresh pictures" in printed
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
    hopeless = replace(tune_command(tiny_scenes, tmp_path), **{"speedup": None, "steps": (4,)} | bound)
    with pytest.raises(ValueError, match=complaint):
        hopeless.run()
    assert not list(tmp_path.iterdir())


def test_finalists_that_lose_too_much_are_no_answer(shop: Workshop, tmp_path: Path) -> None:
    bounds = Bounds(flops=1e12, max_loss=0.01)
    dear, cheap = (shop.candidate(Settings(steps=steps)) for steps in (4, 2))
    finals = Finals(
        finalists=[_standing(cheap, loss=0.05)],
        best_full=_standing(dear, loss=0.0),
        reference=_standing(dear, loss=0.0),
    )
    assert winner_of(finals, bounds) is None
    said = answer_of(finals, None, tmp_path / "preset.json")
    assert said.startswith("nothing meets the bound; nearest is vanilla-2: 1.99 times less than vanilla-4")
    assert "5.0 % (± 0.2)" in said
    kept = replace(finals, finalists=[*finals.finalists, _standing(cheap, loss=0.009)])
    assert winner_of(kept, bounds) is kept.finalists[1]


def _standing(candidate: Candidate, *, loss: float) -> Standing:
    spread = Spread(0.9, 0.01)
    return Standing(
        candidate=candidate,
        pictures=12,
        score=spread,
        fd_scenes=spread,
        loss=Spread(loss, 0.002),
        ms_per_picture=1.0,
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"speedup": None}, "nothing to tune for"),
        ({"gflop": 1.0}, "give one"),
        ({"speedup": 0.0}, "more than 0"),
        ({"max_loss": 1.5}, "0.01 is 1 %"),
        ({"drift_pictures": 0}, "--drift-pictures"),
    ],
)
def test_mistakes(tiny_scenes: Path, tmp_path: Path, options: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(tune_command(tiny_scenes, tmp_path), **options).run()  # type: ignore[arg-type]


def test_a_preset_on_a_pipeline(tiny_scenes: Path, preset: Path) -> None:
    base = swiftmask.load(tiny_scenes)
    fast, settings = swiftmask.apply_preset(base, preset), read_preset(preset).settings
    assert fast.steps == settings.steps
    assert fast.flops(fast.schedule()) == pytest.approx(
        read_preset(preset).measured.found.gflop_per_picture * 1e9
    )
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


def test_a_sum_of_steps_costs_what_the_decode_costs(shop: Workshop) -> None:
    costs = StepCosts()
    for settings in (
        Settings(steps=3),
        Settings(steps=3, shortcut=f"{shop.base.folder}-shortcut", full_steps=(0, 2)),
        Settings(steps=3, sampling=SamplingOptions(guidance=1.0)),
    ):
        pipeline = apply_settings(shop.base, settings)
        schedule = pipeline.schedule()
        assert costs.total(pipeline, schedule) == pipeline.flops(schedule)


def test_budgets_under_a_bound_on_cost_and_on_loss(shop: Workshop) -> None:
    space = Space(steps=(2, 6), reference_steps=6, rivals=("reuse",))
    reference = shop.flops(Settings(steps=6))
    for_cost = {one.row.name for one in budgets(shop, space, Bounds(flops=reference / 2))}
    assert for_cost == {"vanilla-2", "vanilla-3", "vanilla-2 g1", "reuse-2:1", "reuse-6:2"}
    for_loss = {one.row.name for one in budgets(shop, space, Bounds(flops=reference * 0.98, max_loss=0.01))}
    assert {"reuse-6:3", "reuse-6:4"} < for_loss
    assert "vanilla-6" not in for_loss, "the reference is no answer to how it could be cheaper"


def test_progress_counts_pictures_of_earlier_rounds_once(shop: Workshop) -> None:
    shown: list[tuple[float, float]] = []
    meter = Meter(lambda done, total, what: shown.append((done, total)))
    row = shop.candidate(Settings(steps=2)).row
    meter.plan("budgets", 30 * row.flops)
    advance = meter.following([row])
    advance(row.name, 10)
    advance = meter.following([row])  # the next round finds these ten done and draws as many more
    for _ in range(2):
        advance(row.name, 10)
    assert shown[-1] == (20 * row.flops, 30 * row.flops)


def test_as_many_full_steps_as_the_bound_pays_for(shop: Workshop) -> None:
    reuse = Settings(steps=4, caching="reuse")
    a_step = shop.flops(Settings(steps=4)) / 4
    assert [shop.largest_fitting(reuse, Bounds(flops=n * a_step)) for n in (0.2, 1.3, 3.5)] == [None, 1, 3]


def test_placements_of_a_candidate(shop: Workshop) -> None:
    uniform = shop.candidate(Settings(steps=6, caching="reuse", full_steps=3))
    assert uniform.row.name == "reuse-6:3"
    others = list(shop.other_placements(uniform))
    moved = ("front-loaded", "feature-drift", "token-drift")
    assert {one.row.name for one in others} <= {f"reuse-6:3 {placement}" for placement in moved}
    placed = [one.settings.full_steps for one in others]
    assert all(isinstance(full, tuple) and len(full) == 3 and full != (0, 2, 4) for full in placed)
    assert len(set(placed)) == len(placed) > 0
    assert len(list(shop.folder.glob("*-drift-reuse-6-*.json"))) == 2
    looking_back = shop.candidate(Settings(steps=6, caching="extrapolation-1", full_steps=3))
    assert [one.row.name for one in shop.other_placements(looking_back)] == [
        "extrapolation-1-6:3 front-loaded"
    ]


def test_the_sampling_grid_leaves_out_what_the_model_does_anyway() -> None:
    own = SamplingOptions(guidance=2.0, temperature=1.0)
    assert sampling_grid(own, (2.0, 3.0), (1.0,), (), ()) == [SamplingOptions(guidance=3.0)]
    assert len(sampling_grid(own, (1.5, 2.0), (0.9, 1.0), (5.0, 10.0), ())) == 8
    assert sampling_grid(own, (), (), (), ()) == []
    assert sampling_grid(own, (), (), (), (1.0, 2.0)) == [SamplingOptions(schedule_power=2.0)]


def test_what_is_changed_is_in_the_name(shop: Workshop) -> None:
    reuse = Settings(steps=6, caching="reuse", full_steps=3)
    moved = list(shop.other_placements(shop.candidate(reuse)))
    warmer = [
        shop.candidate(replace(one.settings, sampling=SamplingOptions(temperature=0.9)), one.placement)
        for one in moved
    ]
    assert [one.row.name for one in warmer] == [f"reuse-6:3 {one.placement} t0.9" for one in moved]
