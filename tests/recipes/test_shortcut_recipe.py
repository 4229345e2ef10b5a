"""`train shortcut` on a toy model of every family."""

import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import swiftmask
from swiftmask.core.decode import FullFeatures
from swiftmask.methods.shortcut import RotaryShortcut, RotaryShortcutConfig, Shortcut, ShortcutConfig
from swiftmask.methods.shortcut.sizes import Sizes, fresh_shortcut
from swiftmask.methods.shortcut.training import ShortcutTrainer
from swiftmask.models.mar import MAR
from swiftmask.recipes import dimoo_scenes_shortcut, maskgit_scenes_shortcut, shortcut
from swiftmask.recipes.shortcut import ShortcutRecipe
from swiftmask.registry import WEIGHTS
from swiftmask.training.average import Average
from swiftmask.training.loop import Progress
from swiftmask.training.setup import Batches
from tests.recipes.conftest import asked_of, assert_same_best

FAMILIES = ["maskgit", "mar", "meissonic", "lumina_dimoo"]


def tiny(**settings: Any) -> ShortcutRecipe:
    real = shortcut.recipe()
    rounds = replace(
        real.rounds, images_per_round=3, images_per_update=2, updates_per_round=2, step_counts=(3, 4)
    )
    training = replace(real.training, num_steps=3, batch_size=2, save_every=2, log_every=1)
    return replace(real, rounds=rounds, training=training, full_steps=2, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shortcut_of_any_family(family: str, toy_models: dict[str, Path], tmp_path: Path) -> None:
    seen: list[Progress] = []
    asked = asked_of(family, toy_models)
    folder = tiny(**asked).run(tmp_path, seen.append)
    base = swiftmask.load(asked["model"])
    fast = swiftmask.accelerate(base, shortcut=folder)
    what: dict[str, Any] = {"prompts": ["a red circle"]} if "prompts" in asked else {"labels": [1]}
    assert fast.generate(**what, steps=4).cost.calls["backbone"] == 2
    assert (seen[-1].metrics["token_divergence"] > 0) == (base.model.spec.codebook_size is not None)
    config = json.loads((folder / "config.json").read_text())
    assert config["base_model"]["name"] == family
    assert ("rope_theta" in config["shortcut"]) == (family == "lumina_dimoo")


def test_a_killed_run_continues_to_the_same_shortcut(toy_models: dict[str, Path], tmp_path: Path) -> None:
    recipe = tiny(model=str(toy_models["maskgit"]))

    def kill(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recipe.run(tmp_path / "killed", kill)
    whole, resumed = (load_file(recipe.run(tmp_path / n) / "model.safetensors") for n in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert_same_best(tmp_path / "whole", tmp_path / "killed")
    with pytest.raises(ValueError, match="other settings"):
        replace(recipe, rounds=replace(recipe.rounds, token_weight=0.1)).run(tmp_path / "whole")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "model is not set: .* model=runs/maskgit/model"),
        ({"model": "meissonic"}, "generates for prompts: give some, as in prompts=prompts.txt"),
        ({"model": "maskgit", "prompts": "prompts"}, "generates for its classes: leave out prompts"),
        ({"model": "meissonic", "prompts": "prompts", "data": "x"}, "leave out one"),
        ({"model": "meissonic", "prompts": "mar"}, "it is a folder"),
    ],
)
def test_mistakes_are_said_before_the_model_is_read(
    settings: dict[str, str],
    message: str,
    toy_models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("swiftmask.recipes.conditions.load", None)
    given = {key: str(toy_models.get(value, value)) for key, value in settings.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tiny(**given).run(tmp_path)


def test_latents_have_no_token_divergence(toy_models: dict[str, Path], tmp_path: Path) -> None:
    recipe = tiny(model=str(toy_models["mar"]))
    with pytest.raises(ValueError, match="token_weight needs codes"):
        replace(recipe, rounds=replace(recipe.rounds, token_weight=0.5)).run(tmp_path)


def test_captions_of_a_folder_are_generated_for(toy_models: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.txt").write_text("a large blue square")
    recipe = tiny(model=str(toy_models["meissonic"]), data=str(tmp_path / "images"))
    facts = json.loads((recipe.run(tmp_path / "run") / "provenance.json").read_text())
    assert facts["data"] == "captions of images"
    assert facts["rounds"]["token_weight"] == 0.5


def test_a_shortcut_is_trained_with_one_copy_of_its_base(
    toy_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted among all tensors that are alive, with the averaged weights and a batch: the tables of codes,
    in the dtype of the rounds.
    """
    shape = tuple(swiftmask.load(toy_models["maskgit"]).model.transformer.tok_emb.weight.shape)  # type: ignore[attr-defined]

    class SeenError(Exception):
        pass

    def alive() -> list[torch.dtype]:
        gc.collect()
        found = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.shape == shape]
        return [t.dtype for t in {t.untyped_storage().data_ptr(): t for t in found}.values()]

    before = len(alive())

    def look(trainer: ShortcutTrainer, batches: Batches, *rest: object, **options: object) -> None:
        average = Average(trainer, 0.9)
        average.module(batches(0, 0, 1))
        assert len(alive()) == before + 1
        assert torch.bfloat16 in alive()
        raise SeenError

    monkeypatch.setattr("swiftmask.recipes.shortcut.train", look)
    recipe = tiny(model=str(toy_models["maskgit"]))
    with pytest.raises(SeenError):
        replace(recipe, training=replace(recipe.training, precision="bf16-weights")).run(tmp_path)


def test_sizes_follow_the_base(golden_mar: MAR) -> None:
    """Those of the bundled shortcuts, and of the released ones."""
    for module, name in (
        (maskgit_scenes_shortcut, "maskgit-scenes"),
        (dimoo_scenes_shortcut, "dimoo-scenes"),
    ):
        recipe = module.recipe()
        made = fresh_shortcut(swiftmask.load(name).model, recipe.size, recipe.network)
        config = json.loads((WEIGHTS / recipe.name / "config.json").read_text())["shortcut"]
        kind = RotaryShortcutConfig if "rope_theta" in config else ShortcutConfig
        assert made.config == kind(**config)
        assert recipe.model == name
    ours = fresh_shortcut(golden_mar, "small", Sizes(num_blocks=2))
    assert isinstance(ours, Shortcut)
    assert not isinstance(ours, RotaryShortcut)
    assert (ours.config.width, ours.config.num_blocks) == (golden_mar.spec.width, 2)
    assert FullFeatures(golden_mar).name == "backbone"


def test_rounds_are_around_the_steps_of_the_base() -> None:
    for module in (maskgit_scenes_shortcut, dimoo_scenes_shortcut):
        recipe = module.recipe()
        base = swiftmask.load(recipe.model).model
        assert recipe.rounds.of(base).step_counts == (8, 12, 16, 24, 32)
