"""`train speed-rl` on a toy model of every family that scores its tokens."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import swiftmask
from swiftmask.data.scenes import parse_captions
from swiftmask.recipes import (
    dimoo_scenes_speed_rl,
    maskgit_scenes_speed_rl,
    meissonic_scenes_speed_rl,
    speed_rl,
)
from swiftmask.recipes.conditions import Start
from swiftmask.recipes.held_out import LOG_NAME
from swiftmask.recipes.speed_rl import SpeedRLRecipe
from swiftmask.recipes.speed_rl_sheets import SheetConfig
from swiftmask.training.loop import Progress
from tests.recipes.conftest import asked_of, assert_same_best

OWN = """
def bright(images, prompts):
    return images.mean(dim=(1, 2, 3))


def red(images, prompts):
    return [float(image[0].mean()) for image in images]
"""


@pytest.fixture(autouse=True)
def _own_scores(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_scores.py").write_text(OWN)
    monkeypatch.syspath_prepend(folder)


def tiny(**settings: Any) -> SpeedRLRecipe:
    """Two images of each of two prompts, at two and three steps."""
    real = speed_rl.recipe()
    config = replace(
        real.speed_rl,
        num_generations=2,
        generation_batch_size=4,
        step_counts=(2, 3),
        tuning=replace(real.speed_rl.tuning, method="full"),
        activations="kept",
    )
    training = replace(
        real.training, num_steps=2, batch_size=4, learning_rate=1e-2, warmup_steps=1, save_every=2
    )
    given = {"reward": ("own_scores:bright",), "held_out": ("own_scores:red",)} | settings
    sheets = SheetConfig(every=2, steps=(2, 3), num_prompts=2)
    return replace(real, speed_rl=config, training=training, sheets=sheets, **given)


@pytest.mark.parametrize(
    ("family", "tuned_part"),
    [("maskgit", "transformer.transformer.layers."), ("meissonic", "transformer."), ("lumina_dimoo", "back")],
)
def test_any_family_is_tuned_in_its_blocks(
    family: str, tuned_part: str, toy_models: dict[str, Path], tmp_path: Path
) -> None:
    recipe, seen = tiny(**asked_of(family, toy_models)), set[str]()
    folder = recipe.run(tmp_path, lambda progress: seen.update(progress.metrics))
    assert {"rewards/own_scores:bright/mean", "rewards/own_scores:red/mean", "speed_reward", "kl"} <= seen
    before, after = (load_file(f / "model.safetensors") for f in (Path(recipe.model), folder))
    changed = {key for key in before if not torch.equal(before[key].half(), after[key].half())}
    assert changed
    assert all(key.startswith(tuned_part) and "emb" not in key for key in changed)
    names = [path.name for path in sorted((tmp_path / "samples").iterdir())]
    assert names == ["step-000000.png", "step-000002.png"]
    base = swiftmask.load(recipe.model)
    tuned = swiftmask.accelerate(base, speed_rl=tmp_path)
    assert tuned.steps == min(max(1, round(base.steps / 3)), 16)
    facts = json.loads((folder / "provenance.json").read_text())
    assert (facts["reward"], facts["held_out"]) == (["own_scores:bright"], ["own_scores:red"])
    with pytest.raises(ValueError, match="other settings"):
        replace(recipe, reward=("own_scores:bright:2",)).run(tmp_path)


def test_adapters_are_the_default(toy_models: dict[str, Path], tmp_path: Path) -> None:
    recipe = tiny(model=str(toy_models["maskgit"]))
    tuning = replace(speed_rl.recipe().speed_rl.tuning, lora_r=2)
    replace(recipe, speed_rl=replace(recipe.speed_rl, tuning=tuning)).run(tmp_path)
    assert all("lora" in name for name in load_file(tmp_path / "policy" / "model.safetensors"))


def test_a_killed_run_continues_to_the_same_model(toy_models: dict[str, Path], tmp_path: Path) -> None:
    recipe = tiny(model=str(toy_models["maskgit"]))
    often = replace(recipe, training=replace(recipe.training, save_every=1))

    def kill(progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        often.run(tmp_path / "killed", kill)
    states = [load_file(often.run(tmp_path / n) / "model.safetensors") for n in ("whole", "killed")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert_same_best(tmp_path / "whole", tmp_path / "killed")
    lines = [json.loads(line) for line in (tmp_path / "whole" / LOG_NAME).read_text().splitlines()]
    assert [list(line) for line in lines] == [["step", "own_scores:red", "own_scores:bright"]] * 2
    best = max(lines, key=lambda line: line["own_scores:red"])
    folder = tmp_path / "whole" / "best"
    assert json.loads((folder / "provenance.json").read_text())["checkpoint"] == best
    fast = swiftmask.accelerate(swiftmask.load(recipe.model), speed_rl=folder)
    merged, alone = (each.model.state_dict() for each in (fast, swiftmask.load(folder)))  # type: ignore[attr-defined]
    for key in alone:
        torch.testing.assert_close(merged[key], alone[key], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "model is not set"),
        ({"reward": ()}, "reward is not set: .* reward=pickscore"),
        ({"held_out": ()}, "held_out is not set: .* held_out=clip"),
        ({"reward": ("hps",)}, "hps needs its weights, as in hps=PATH"),
        ({"held_out": ("clip=./nowhere",)}, "no weights of clip at ./nowhere"),
        ({"model": "meissonic"}, "generates for prompts: give some"),
        ({"model": "meissonic", "prompts": "nowhere.txt"}, "no such file of prompts"),
    ],
)
def test_mistakes_are_said_before_the_model_is_read(
    settings: dict[str, Any],
    message: str,
    toy_models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swiftmask.recipes.conditions.load", None)
    given = {"model": "maskgit"} | settings
    given["model"] = str(toy_models.get(given["model"], given["model"]))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tiny(**given).run(tmp_path)


def test_a_model_without_likelihoods_is_refused(toy_models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mar has no log_prob"):
        tiny(model=str(toy_models["mar"])).run(tmp_path)


def test_a_reader_of_scenes_needs_their_captions(toy_models: dict[str, Path], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a castle\n")
    recipe = tiny(model=str(toy_models["meissonic"]), prompts=str(prompts), reward=("scenes-reward",))
    with pytest.raises(ValueError, match="a castle"):
        recipe.run(tmp_path)


@pytest.mark.parametrize(
    "module", [maskgit_scenes_speed_rl, meissonic_scenes_speed_rl, dimoo_scenes_speed_rl]
)
def test_presets_tune_bundled_models_for_five_steps(module: Any) -> None:
    recipe: SpeedRLRecipe = module.recipe()
    start = Start.of(recipe)
    base: Any = start.read().model
    steps, config = recipe.planned(base)
    assert steps == 5
    is_meissonic = module is meissonic_scenes_speed_rl
    assert (config.step_counts, config.speed_weight) == (((5,), 0.0) if is_meissonic else ((4, 5, 6), 0.1))
    assert recipe.training.batch_size == config.generation_batch_size == 64
    what = start.conditions(base).listed(300)
    if base.spec.draws == "prompt":
        texts = [str(text) for text in what]
        assert 100 < len(set(texts)) == len(texts) <= 300
        assert len(parse_captions(texts)) == len(texts)
    else:
        assert list(what) == list(range(base.spec.num_classes))
