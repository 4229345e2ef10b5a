"""Base models of every family on a folder of a few images: from a tokenizer to a folder that generates."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import swiftmask
from swiftmask.core.trainable import Subject
from swiftmask.models.meissonic.generator import Meissonic
from swiftmask.models.meissonic.training import TRAINABLE as MEISSONIC
from swiftmask.recipes.base_model import BaseModelRecipe, SampleConfig, base_recipe
from swiftmask.recipes.tokenizer import TokenizerRecipe
from swiftmask.recipes.tokenizer_files import read_tokenizer
from swiftmask.registry import model_names, trainable
from swiftmask.training.loop import Progress
from swiftmask.training.setup import TrainingConfig, memory_needed

SIDE = 16
FEW = TrainingConfig(num_steps=4, batch_size=4, precision="no", save_every=2, log_every=1, warmup_steps=1)


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of ten images, each with a caption."""
    folder = tmp_path_factory.mktemp("products")
    lines = []
    for kind, colour in (("mug", "red"), ("vase", "blue")):
        (folder / kind).mkdir()
        for i in range(10):
            image = Image.new("RGB", (SIDE, SIDE), "white")
            image.paste(colour, (2, 2, 5 + i % 5, 12))
            image.save(folder / kind / f"{i}.png")
            lines.append({"file_name": f"{kind}/{i}.png", "text": f"a {colour} {kind}, on white"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def tokenizers(products: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hardly trained ones of both kinds, by kind."""
    folder = tmp_path_factory.mktemp("tokenizers")

    def trained(kind: str) -> Path:
        recipe = TokenizerRecipe(
            data=str(products),
            kind="kl" if kind == "kl" else "vq",
            resolution=SIDE,
            size="tiny",
            num_codes=16,
            kept_codes=12 if kind == "vq" else None,
            training=replace(FEW, num_steps=1),
        )
        return recipe.run(folder / kind)

    return {kind: trained(kind) for kind in ("vq", "kl")}


Few = Callable[[str], BaseModelRecipe]


@pytest.fixture(scope="module")
def few(products: Path, tokenizers: dict[str, Path]) -> Few:
    """The recipe of a family at toy size."""

    def recipe(family: str) -> BaseModelRecipe:
        own = base_recipe(family, FEW, data=str(products), size="tiny", steps=4)
        return replace(
            own,
            tokenizer=str(tokenizers[own.trainable.tokenizers[0]]),
            source=replace(own.source, held_out=0.25, mirror=True),
            samples=SampleConfig(number=2, steps=2),
            sampling=replace(own.sampling, denoising_steps=2) if family == "mar" else own.sampling,
        )

    return recipe


@pytest.mark.parametrize("family", model_names())
def test_a_few_images_become_a_model_that_generates(family: str, few: Few, tmp_path: Path) -> None:
    recipe = few(family)
    trained = swiftmask.load(recipe.run(tmp_path))
    asked: dict[str, Any] = (
        {"labels": ["mug"]} if recipe.trainable.draws == "class" else {"prompts": ["a blue mug, on red"]}
    )
    images = trained.generate(**asked, steps=2, output_type="pt").images
    assert isinstance(images, torch.Tensor)
    assert images.shape == (1, 3, SIDE, SIDE)
    if recipe.trainable.tokenizers[0] == "vq":
        assert trained.model.spec.codebook_size == 12

    lines = [json.loads(line) for line in (tmp_path / "held_out.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert swiftmask.load(tmp_path / "best").model.spec == trained.model.spec
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.width > 2 * SIDE
    provenance = json.loads((tmp_path / "model" / "provenance.json").read_text())
    assert "16 images, 4 held out" in provenance["data"]

    again = few(family)
    killed = replace(again, samples=SampleConfig(number=0))

    def kill(progress: Progress) -> None:
        if progress.num_steps == FEW.num_steps and progress.step == 3 and "images" not in progress.metrics:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run(tmp_path / "killed", kill)
    resumed = killed.run(tmp_path / "killed")
    expected, found = (load_file(f / "model.safetensors") for f in (tmp_path / "model", resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    if family == "mar":
        return
    onward = replace(again, tokenizer="", initial=str(tmp_path / "model"), samples=SampleConfig(number=0))
    tuned = load_file(onward.run(tmp_path / "onward") / "model.safetensors")
    assert tuned.keys() == expected.keys()
    assert any(not torch.equal(tuned[name], expected[name]) for name in expected)


def test_what_does_not_fit_is_refused_before_any_work(
    few: Few, tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    mar, meissonic = few("mar"), few("meissonic")
    for recipe, message in (
        (
            replace(mar, tokenizer=str(tokenizers["vq"])),
            "of kind 'vq', mar needs 'kl': train one with kind=kl",
        ),
        (replace(meissonic, tokenizer=""), "tokenizer is not set: .* kind=vq"),
        (replace(meissonic, initial="maskgit-scenes"), "initial is a maskgit .*, expected a meissonic"),
        (replace(mar, data=""), "data is not set"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.run(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="unknown size 'huge': choose one of tiny, small"):
        replace(mar, size="huge")


def test_sources_without_classes_or_captions_are_refused(few: Few, tmp_path: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "one.png")
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "two.png")
    (tmp_path / "two.txt").write_text("two")
    with pytest.raises(ValueError, match="has no classes: expected one subfolder a class"):
        replace(few("maskgit"), data=str(tmp_path)).run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"1 of 2 images .* have no caption \(one.png\)"):
        replace(few("lumina_dimoo"), data=str(tmp_path)).run(tmp_path / "run")


def test_a_model_is_gone_on_from_with_other_images_of_the_same_kind(few: Few, tmp_path: Path) -> None:
    """The bundled MaskGIT has 48 classes and the VQGAN of its own."""
    recipe = replace(few("maskgit"), tokenizer="", initial="maskgit-scenes")
    with pytest.raises(ValueError, match="the model to go on from has classes 48, .* give 2"):
        recipe.run(tmp_path / "products")
    few_scenes = replace(recipe.source, num_images=96)
    scenes = replace(recipe, data="scenes:classes", source=few_scenes, samples=SampleConfig(number=0))
    scenes = replace(scenes, training=replace(FEW, num_steps=1))
    assert swiftmask.load(scenes.run(tmp_path / "scenes")).model.spec.codebook_size == 192


def test_words_that_a_model_does_not_know_are_named(tokenizers: dict[str, Path]) -> None:
    tokenizer = read_tokenizer(tokenizers["vq"])
    subject = Subject(codec=tokenizer.codec, resolution=SIDE, captions=("a mug", "a red vase"))
    for family, message in (("meissonic", "unknown word 'plate'"), ("lumina_dimoo", "unknown word 'plate'")):
        own = trainable(family)
        task = own.fresh(own.chosen("tiny", own.unset), subject, own.objective)
        model = task.model(task.trainer, own.sampling, 4)
        own.resumed(model, subject, own.objective)
        with pytest.raises(ValueError, match=message):
            own.resumed(model, replace(subject, captions=("a plate",)), own.objective)


def test_long_captions_are_cut_only_where_that_is_asked_for(tokenizers: dict[str, Path]) -> None:
    tokenizer = read_tokenizer(tokenizers["vq"])
    subject = Subject(codec=tokenizer.codec, resolution=SIDE, captions=("a mug",))
    sizes, objective = MEISSONIC.chosen("tiny", MEISSONIC.unset), MEISSONIC.objective
    task = MEISSONIC.fresh(sizes, subject, objective)
    model = task.model(task.trainer, MEISSONIC.sampling, 4)
    assert isinstance(model, Meissonic)
    longer = replace(subject, captions=("a mug", "a mug a mug"))
    with pytest.raises(ValueError, match="1 of 2 captions have more than 4 tokens"):
        MEISSONIC.resumed(model, longer, objective)
    cut = MEISSONIC.resumed(model, longer, replace(objective, truncate=True))
    rows, generator = torch.zeros(1, 4, 4, dtype=torch.int16), torch.Generator()
    batch = cut.batch(rows, ["a mug a mug"], generator.manual_seed(1))
    assert batch.captions_BT.shape == (1, 4)  # type: ignore[attr-defined]


def test_memory_is_counted_by_optimizer() -> None:
    layer = torch.nn.Linear(1000, 1000)
    said = memory_needed(layer, FEW)
    assert said.startswith("1.0 million parameters; ")
    assert "take 0.02 GB" in said  # 5 numbers of 4 bytes each
    assert "take 0.016 GB" in memory_needed(layer, replace(FEW, muon_learning_rate=1e-3))
    layer.weight.requires_grad_(False)
    assert "(0.0 million of them trained)" in memory_needed(layer, FEW)
