"""The presets of Emoji: they fit into eight megabytes, and each trains on a folder of pairs."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from swiftmask.api import load
from swiftmask.core.trainable import Subject
from swiftmask.data.emoji.build import read_records
from swiftmask.data.sources import Classes
from swiftmask.recipes.base_model import BaseModelRecipe
from swiftmask.registry import recipe_module
from swiftmask.rewards.reader_networks import WIDTHS, ReaderNetwork, ReaderSettings
from tests.rehearsal.test_recipes import smaller
from tests.toy_pairs import NOTICE, write_pairs

PACK = Path(__file__).parents[2] / "data" / "emoji"
MOST_PARAMETERS = 3_950_000
"""In float16, beside which half a hundred kilobytes of config and of whole numbers fit into 8 MB."""

MODELS = ("maskgit-emoji", "mar-emoji", "meissonic-emoji", "dimoo-emoji")
READERS = ("emoji-reward", "emoji-judge")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_fits_with_its_tokenizer(name: str) -> None:
    """With the classes and the words of all images."""
    recipe = recipe_module(name).recipe()
    assert isinstance(recipe, BaseModelRecipe)
    records = read_records(PACK)
    classes = Classes.of_columns([(record.concept, record.style) for record in records])
    tokenizer = recipe_module("emoji-codec" if recipe.family == "mar" else "emoji-tokenizer").recipe()
    tokenizer = replace(tokenizer, num_codes=tokenizer.kept_codes or tokenizer.num_codes)
    own = recipe.trainable
    of_classes = own.draws == "class"
    subject = Subject(
        codec=tokenizer.untrained().codec,
        resolution=tokenizer.resolution,
        class_names=classes.names if of_classes else (),
        attributes_NA=classes.attributes_NA if of_classes else None,
        captions=[text for record in records for text in (record.caption, *record.captions)],
    )
    task = own.fresh(own.chosen(recipe.size, recipe.network), subject, recipe.objective)
    model: Any = task.model(task.trainer, recipe.sampling, recipe.steps)
    assert 3_400_000 < sum(p.numel() for p in model.parameters()) < MOST_PARAMETERS


@pytest.mark.parametrize("name", MODELS)
def test_sampling_that_a_preset_leaves_open_is_the_familys(name: str) -> None:
    """mar-emoji once lost `noisiest_timestep` to its guidance, and generated noise."""
    recipe = recipe_module(name).recipe()
    left_open = {key for key, value in asdict(recipe.sampling).items() if value is None}
    assert left_open == {key for key, value in asdict(recipe.trainable.sampling).items() if value is None}


def test_reward_and_judge_differ_and_fit() -> None:
    recipes = [recipe_module(name).recipe() for name in READERS]
    assert (
        len({recipe.network for recipe in recipes}) == len({recipe.training.seed for recipe in recipes}) == 2
    )
    records = read_records(PACK)
    for recipe in recipes:
        assert recipe.all_images
        columns = {name: sorted({getattr(record, name) for record in records}) for name in recipe.columns}
        settings = ReaderSettings(
            name=recipe.name,
            network=recipe.network,
            width=WIDTHS[recipe.network][recipe.size],
            num_features=recipe.num_features,
            resolution=recipe.resolution,
            columns=columns,
        )
        assert 2_000_000 < sum(p.numel() for p in ReaderNetwork(settings).parameters()) < MOST_PARAMETERS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What presets have made so far, by name, and the data."""
    return {"data": str(write_pairs(tmp_path_factory.mktemp("emoji") / "data"))}


ORDER = (
    "emoji-tokenizer",
    "emoji-codec",
    *READERS,
    *MODELS,
    "maskgit-emoji-shortcut",
    "meissonic-emoji-shortcut",
    "dimoo-emoji-shortcut",
    "meissonic-emoji-speed-rl",
    "mar-emoji-marval",
    "mar-emoji-marval-rl",
)
"""Each after what it is made of."""


@pytest.mark.parametrize("name", ORDER)
def test_a_preset_trains_on_what_earlier_ones_made(
    name: str, made: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One toy update each, on 32 images with the columns of Emoji; the data's name and notice go to each."""
    recipe: Any = replace(smaller(small(recipe_module(name).recipe())), data=made["data"])
    if name == "maskgit-emoji-shortcut":
        recipe = replace(recipe, data="")  # a model of classes asks for them all
    changes: dict[str, Any] = {}
    if name == "mar-emoji-marval":  # a student that is its teacher is refused
        longer = replace(recipe.training, num_steps=2, learning_rate=0.02, warmup_steps=0)
        changes["training"] = longer
    if getattr(recipe, "tokenizer", ""):
        changes["tokenizer"] = made["emoji-codec" if name == "mar-emoji" else "emoji-tokenizer"]
    for key in ("model", "student"):
        if given := getattr(recipe, key, ""):
            changes[key] = made[name_in(given)]
    for key in ("reward", "held_out"):
        if isinstance(given := getattr(recipe, key, None), tuple):
            changes[key] = tuple(f"reader={made[name_in(text)]}" for text in given)
    folder = replace(recipe, **changes).run(tmp_path_factory.mktemp(name))
    made[name] = str(folder)
    assert (folder / "NOTICE.md").read_text() == NOTICE
    said = json.loads((folder / "provenance.json").read_text())["data"]
    assert Path(made["data"]).name in said or not recipe.data
    if name in MODELS:
        assert load(folder, device="cpu").model.spec.name == recipe.family


def name_in(given: str) -> str:
    """The preset that a default path or a bundled name means."""
    name = given.removeprefix("reader=").removesuffix("/model").removeprefix("runs/")
    assert name in ORDER
    return name


def small(recipe: Any) -> Any:
    """Of the smallest networks, where a recipe has sizes."""
    changes: dict[str, Any] = {"size": "tiny"} if "size" in dir(recipe) else {}
    if isinstance(recipe, BaseModelRecipe):
        unset = recipe.trainable.unset
        composed = {"composed_classes": True} if recipe.trainable.draws == "class" else {}
        changes["network"] = type(unset)(**composed)
    elif not hasattr(recipe, "resolution"):
        changes = {}  # accelerators follow their base
    if hasattr(recipe, "resolution"):
        changes["resolution"] = 32
    return replace(recipe, **changes)
