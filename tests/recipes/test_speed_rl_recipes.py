"""The Speed-RL recipes at toy size: whole runs to folders that load, and what they are made of."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import swiftmask
from swiftmask.data.scenes import CLASS_NAMES, NUM_CLASSES, class_scenes, parse_captions, render
from swiftmask.methods.speed_rl import SpeedConfig, SpeedRLConfig
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.network import Transformer, TransformerConfig
from swiftmask.recipes import (
    dimoo_scenes_speed_rl,
    maskgit_scenes_speed_rl,
    meissonic_scenes_speed_rl,
)
from swiftmask.recipes.speed_rl_scenes import (
    STEPS,
    Readers,
    SceneSpeedRLRecipe,
    classes_scored_by,
    first_guesses,
)
from swiftmask.recipes.speed_rl_sheets import SheetConfig
from swiftmask.rewards.scenes import caption_reward, load_reward
from swiftmask.training.loop import Progress
from tests.toy_models import caption_folder

RECIPES = [maskgit_scenes_speed_rl, meissonic_scenes_speed_rl, dimoo_scenes_speed_rl]


@pytest.fixture(scope="module")
def maskgit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained MaskGIT of Scenes classes, on 4x4 tokens."""
    torch.manual_seed(0)
    sizes = TransformerConfig(
        width=16, depth=1, num_heads=2, mlp_width=16, codebook_size=16, num_classes=NUM_CLASSES, grid=4
    )
    codec = VQGANConfig(
        ch=4, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8, z_channels=4,
        n_embed=16, embed_dim=4, num_groups=2,
    )  # fmt: skip
    model = MaskGIT(Transformer(sizes), VQGAN(codec), class_names=CLASS_NAMES)
    folder = tmp_path_factory.mktemp("maskgit")
    model.save_pretrained(folder, provenance={})
    return folder


@pytest.fixture(scope="module")
def meissonic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Meissonic with the words of captions, on 4x4 tokens."""
    return caption_folder("meissonic", tmp_path_factory.mktemp("meissonic"))


@pytest.fixture(scope="module")
def dimoo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Lumina-DiMOO with the words of captions, on 4x4 tokens."""
    return caption_folder("lumina_dimoo", tmp_path_factory.mktemp("dimoo"), side=16, downscale=4)


def smaller(config: SpeedRLConfig) -> SpeedRLConfig:
    """Two pictures of each of two prompts, at two and three steps."""
    return replace(
        config,
        num_generations=2,
        generation_batch_size=4,
        step_policy="stratified:2,3",
        speed=SpeedConfig(fastest=2, reference=2, slowest=3),
        activations="kept",
    )


def shortened(recipe: SceneSpeedRLRecipe, base: Path) -> SceneSpeedRLRecipe:
    config = smaller(recipe.speed_rl)
    training = replace(first_guesses(config), num_steps=2, learning_rate=1e-2, warmup_steps=1)
    return replace(recipe, speed_rl=config, training=training, base=str(base))


@pytest.fixture(scope="module")
def recipes(
    maskgit_folder: Path, meissonic_folder: Path, dimoo_folder: Path
) -> dict[str, SceneSpeedRLRecipe]:
    return {
        "dimoo": shortened(replace(dimoo_scenes_speed_rl.recipe(), num_captions=8), dimoo_folder),
        "maskgit": shortened(maskgit_scenes_speed_rl.recipe(), maskgit_folder),
        "meissonic": shortened(replace(meissonic_scenes_speed_rl.recipe(), num_captions=8), meissonic_folder),
    }


def policy_of(run: Path) -> dict[str, Tensor]:
    """What a run trained, by the names it has in the model."""
    return load_file(run / "policy" / "model.safetensors")


def draw(folder: Path) -> Tensor:
    pipeline = swiftmask.load(folder)
    if pipeline.model.spec.draws == "class":
        images = pipeline.generate(["red circle"], steps=2, output_type="pt").images
    else:
        prompts = ["a small red circle on a plain blue background"]
        images = pipeline.generate(prompts=prompts, steps=2, output_type="pt").images
    assert isinstance(images, Tensor)
    return images


@pytest.mark.parametrize(
    ("name", "tuned_part"),
    [
        ("maskgit", "transformer."),
        ("meissonic", "transformer."),
        ("dimoo", "backbone.model.transformer.blocks."),
    ],
)
def test_a_toy_run_tunes_the_transformer_alone_and_refuses_other_settings(
    recipes: dict[str, SceneSpeedRLRecipe], name: str, tuned_part: str, tmp_path: Path
) -> None:
    recipe, seen = recipes[name], set[str]()
    recipe = replace(recipe, sheets=SheetConfig(every=10, steps=(2, 3), num_prompts=2))
    folder = recipe.run(tmp_path, lambda progress: seen.update(progress.metrics))
    assert {"rewards/scenes-reward/mean", "rewards/scenes-judge/mean", "reward_by_steps/2", "kl"} <= seen
    assert draw(folder).shape[:2] == (1, 3)
    before, after = (load_file(f / "model.safetensors") for f in (Path(recipe.base), folder))
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key].half(), after[key])}
    assert changed
    assert all(key.startswith(tuned_part) for key in changed)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-000000.png"]
    tuned = swiftmask.accelerate(swiftmask.load(recipe.base), speed_rl=tmp_path)
    assert tuned.steps == STEPS
    assert tuned.sampling.temperature == (0.8 if name == "meissonic" else None)
    base: Any = swiftmask.load(recipe.base).model
    whole: Any = swiftmask.load(folder).model
    assert whole.sampling == tuned.sampling.over(base.sampling)
    assert isinstance(tuned.model, torch.nn.Module)
    state = dict(tuned.model.named_parameters())
    assert all(torch.equal(state[key].half(), value) for key, value in policy_of(tmp_path).items())
    provenance = json.loads((folder / "provenance.json").read_text())
    assert (provenance["steps"], provenance["speed_rl"]["num_generations"]) == (STEPS, 2)
    with pytest.raises(ValueError, match="other settings"):
        replace(recipe, speed_rl=replace(recipe.speed_rl, beta=0.5)).run(tmp_path)


def test_a_killed_run_continues_to_the_same_model(
    recipes: dict[str, SceneSpeedRLRecipe], tmp_path: Path
) -> None:
    whole = recipes["maskgit"].run(tmp_path / "whole")
    recipe = recipes["maskgit"]
    often = replace(recipe, training=replace(recipe.training, save_every=1))

    def kill(progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        often.run(tmp_path / "killed", kill)
    resumed = often.run(tmp_path / "killed")
    states = [load_file(folder / "model.safetensors") for folder in (whole, resumed)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("module", RECIPES)
def test_without_its_base_a_recipe_says_how_to_get_one(module, tmp_path: Path) -> None:
    recipe = replace(module.recipe(), base=str(tmp_path / "nowhere"))
    name = recipe.name.removesuffix("-speed-rl")
    with pytest.raises(FileNotFoundError, match=f"swiftmask train {name}.* base=runs/{name}/model"):
        recipe.run(tmp_path)


@pytest.mark.parametrize("module", RECIPES)
def test_the_wanted_number_of_steps_is_trained_and_rewarded(module) -> None:
    recipe: SceneSpeedRLRecipe = module.recipe()
    policy, listed = recipe.speed_rl.step_policy.split(":")
    counts, speed = [int(count) for count in listed.split(",")], recipe.speed_rl.speed
    assert STEPS in counts
    if policy == "fixed":
        assert speed.weight == 0.0, "all pictures are equally fast"
    else:
        assert (speed.fastest, speed.reference, speed.slowest) == (min(counts), STEPS, max(counts))
    assert recipe.training.batch_size == recipe.speed_rl.generation_batch_size


def test_a_run_knows_its_readers_wherever_they_lie(tmp_path: Path) -> None:
    moved = Readers(reward=str(shutil.copytree(Readers().reward, tmp_path / "elsewhere")))
    assert moved.fingerprints() == Readers().fingerprints()
    assert Readers(reward=Readers().judge).fingerprints() != Readers().fingerprints()


def test_the_judge_is_held_out_and_another_than_the_reward() -> None:
    readers = Readers()
    judges = readers.judges(caption_reward)
    assert dict(zip(judges.names, judges.weights_M.tolist(), strict=True)) == {
        "scenes-reward": 1.0,
        "scenes-judge": 0.0,
    }
    assert readers.reward != readers.judge


def test_prompts_are_different_captions_that_judges_can_read() -> None:
    recipe = replace(meissonic_scenes_speed_rl.recipe(), num_captions=300)
    texts = [str(text) for text in recipe.prompts("prompt").what]
    assert 100 < len(set(texts)) == len(texts) <= 300
    assert len(parse_captions(texts)) == len(texts)


def test_a_run_on_what_its_base_fails_at(recipes: dict[str, SceneSpeedRLRecipe], tmp_path: Path) -> None:
    recipe = replace(recipes["meissonic"], hardest=0.5, scored=2)
    folder = recipe.run(tmp_path)
    (file,) = tmp_path.glob("scored-*.jsonl")
    scored = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["prompt"] for line in scored] == recipe.prompts("prompt").what
    assert all(0 <= line["reward"] <= 1 for line in scored)
    assert json.loads((folder / "provenance.json").read_text())["hardest"] == 0.5
    with pytest.raises(ValueError, match="other settings"):
        replace(recipe, hardest=1.0).run(tmp_path)


@pytest.mark.parametrize("wrong", [{"hardest": 0.0}, {"hardest": 1.1}, {"scored": 0}])
def test_a_share_or_number_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a"):
        replace(meissonic_scenes_speed_rl.recipe(), **wrong)


def test_prompts_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text(
        "a small blue star on a plain red background\n\na large red ring on a plain blue background\n"
    )
    recipe = replace(meissonic_scenes_speed_rl.recipe(), prompt_file=str(path))
    assert recipe.prompts("prompt").what == [line for line in path.read_text().splitlines() if line]
    with pytest.raises(ValueError, match="leave out prompt_file"):
        recipe.prompts("class")
    path.write_text("a castle\n")
    with pytest.raises(ValueError, match="a castle"):
        recipe.prompts("prompt")


@pytest.mark.parametrize("wrong", [0, 9])
def test_classes_are_scored_by_their_facts(wrong: int) -> None:
    score: Callable[..., Tensor] = classes_scored_by(load_reward())
    labels_B = torch.tensor([0, 13, 29])
    images_B3HW = render(class_scenes(labels_B, torch.arange(3)))
    scores_B = score(images_B3HW, ((labels_B + wrong) % NUM_CLASSES).tolist())
    assert (scores_B == 1).all() if wrong == 0 else (scores_B < 0.5).all()
