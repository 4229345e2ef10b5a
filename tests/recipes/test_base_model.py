"""Base models of every family on a folder of a few images: from a tokenizer to a folder that generates."""

import json
import shutil
from collections.abc import Callable, Sequence
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
from tests.recipes.conftest import assert_same_best
from tests.released_layouts import write, write_meissonic

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


JUDGE = f"{__name__}:brightness"


def brightness(images: torch.Tensor, what: Sequence[object]) -> torch.Tensor:
    assert all(str(text).endswith(("picture of mug", "picture of vase", "on white")) for text in what)
    return images.mean((1, 2, 3))


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
            judges=(JUDGE,),
            judged=3,
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
    assert all(0 < line[JUDGE] < 1 for line in lines)
    assert swiftmask.load(tmp_path / "best").model.spec == trained.model.spec
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.width > 2 * SIDE
    provenance = json.loads((tmp_path / "model" / "provenance.json").read_text())
    assert "16 images, 4 held out" in provenance["data"]
    assert provenance["hours"] >= 0

    again = few(family)
    killed = replace(again, samples=SampleConfig(number=0, steps=2))

    def kill(progress: Progress) -> None:
        if progress.num_steps == FEW.num_steps and progress.step == 3 and "images" not in progress.metrics:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run(tmp_path / "killed", kill)
    resumed = killed.run(tmp_path / "killed")
    expected, found = (load_file(f / "model.safetensors") for f in (tmp_path / "model", resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert_same_best(tmp_path, tmp_path / "killed")

    if family == "mar":
        return
    onward = replace(again, tokenizer="", initial=str(tmp_path / "model"), samples=SampleConfig(number=0))
    tuned = load_file(onward.run(tmp_path / "onward") / "model.safetensors")
    assert tuned.keys() == expected.keys()
    assert any(not torch.equal(tuned[name], expected[name]) for name in expected)


def test_going_on_with_another_tokenizer_is_said(
    tokenizers: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = base_recipe("meissonic", FEW, initial="meissonic-emoji", tokenizer="emoji-tokenizer")
    model = recipe.read_initial()
    assert recipe.read_tokenizer(model, Path("unused"), None).kind == "vq"
    assert not caplog.records, "the one that it was trained on"
    other = replace(recipe, tokenizer=str(tokenizers["vq"]))
    assert other.read_tokenizer(model, Path("unused"), None).kind == "vq"
    assert "meissonic-emoji was trained on another tokenizer" in caplog.text


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
        (replace(mar, judges=("hps",)), "hps needs its weights, as in hps=PATH"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.run(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="unknown size 'huge': choose one of tiny, small"):
        replace(mar, size="huge")
    with pytest.raises(ValueError, match="unknown reward 'klip'"):
        replace(mar, judges=("klip",))


def test_sources_without_classes_or_captions_are_refused(few: Few, tmp_path: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "one.png")
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "two.png")
    (tmp_path / "two.txt").write_text("two")
    with pytest.raises(ValueError, match="has no classes: expected one subfolder a class"):
        replace(few("maskgit"), data=str(tmp_path)).run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"1 of 2 images .* have no caption \(one.png\)"):
        replace(few("lumina_dimoo"), data=str(tmp_path)).run(tmp_path / "run")


def test_captions_that_changed_do_not_continue_a_run(few: Few, products: Path, tmp_path: Path) -> None:
    data = shutil.copytree(products, tmp_path / "data")
    recipe = replace(few("lumina_dimoo"), data=str(data), samples=SampleConfig(number=0))
    recipe.run(tmp_path / "run")
    lines = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    lines[0]["text"], lines[-1]["text"] = lines[-1]["text"], lines[0]["text"]
    (data / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match="written with other settings"):
        recipe.run(tmp_path / "run")


@pytest.mark.parametrize("name", ["maskgit-scenes", "mar-scenes"])
def test_a_bundled_model_learns_other_classes(name: str, few: Few, tmp_path: Path) -> None:
    """Two instead of 48; MaskGIT's keeps the VQGAN of its own."""
    bundled = swiftmask.load(name).model
    recipe = replace(few(bundled.spec.name), tokenizer="", initial=name, samples=SampleConfig(number=0))
    tuned = swiftmask.load(replace(recipe, training=replace(FEW, num_steps=1)).run(tmp_path)).model
    assert tuned.class_names == ("mug", "vase")  # type: ignore[attr-defined]
    assert (bundled.spec.num_classes, tuned.spec.num_classes) == (48, 2)
    before, after = (model.state_dict() for model in (bundled, tuned))  # type: ignore[attr-defined]
    assert after.keys() == before.keys()
    moved = [
        (after[key] - before[key]).abs().max() for key in before if after[key].shape == before[key].shape
    ]
    assert 0 < max(moved) < 0.1


@pytest.mark.parametrize(
    ("family", "side", "message"),
    [
        ("maskgit", 32, "has a grid of 4, the data and tokenizer give 8"),
        ("mar", 32, "has a grid of 4, the data and tokenizer give 8"),
        ("mar", 20, "5x5 latents, which do not divide into patches of 2x2: take network.patch_size=1"),
        ("meissonic", 20, "height and width must be multiples of 8, got 20x20"),
    ],
)
def test_another_resolution_is_refused(
    family: str, side: int, message: str, tokenizers: dict[str, Path]
) -> None:
    """By a model to go on from, or by a fresh one that it does not divide into."""
    own = trainable(family)
    codec = read_tokenizer(tokenizers[own.tokenizers[0]]).codec
    subject = Subject(
        codec=codec,
        resolution=SIDE,
        class_names=("mug", "vase"),
        attributes_NA=torch.arange(2)[:, None],
        captions=("a mug",),
    )
    sizes = own.chosen("tiny", own.unset)
    task = own.fresh(sizes, subject, own.objective)
    with pytest.raises(ValueError, match=message):
        if side == 2 * SIDE:
            own.resumed(
                task.model(task.trainer, own.sampling, 4), replace(subject, resolution=side), own.objective
            )
        else:
            own.fresh(sizes, replace(subject, resolution=side), own.objective)


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


def test_a_named_text_encoder_is_frozen(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = read_tokenizer(tokenizers["vq"])
    subject = Subject(codec=tokenizer.codec, resolution=SIDE, captions=("a mug",))
    sizes = MEISSONIC.chosen("tiny", MEISSONIC.unset)
    task = MEISSONIC.fresh(sizes, subject, MEISSONIC.objective)
    text = task.model(task.trainer, MEISSONIC.sampling, 4).text_encoder  # type: ignore[attr-defined]
    write(tmp_path, text.clip.state_dict(), "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"num_attention_heads": 2, "hidden_act": "gelu", "eos_token_id": 0}'
    )
    text.tokenizer.save(tmp_path)

    named = replace(MEISSONIC.objective, text_encoder=tmp_path)
    with_clip = MEISSONIC.fresh(sizes, subject, named)
    trained = {name.split(".")[0] for name, p in with_clip.trainer.named_parameters() if p.requires_grad}
    assert trained == {"transformer"}
    assert torch.equal(
        dict(with_clip.trainer.named_parameters())[_TEXT], dict(task.trainer.named_parameters())[_TEXT]
    )
    with pytest.raises(ValueError, match="projects to 64 channels, the transformer has 96"):
        MEISSONIC.fresh(replace(sizes, num_heads=3), subject, named)
    with pytest.raises(ValueError, match="unknown word 'plate'"):
        MEISSONIC.fresh(sizes, replace(subject, captions=("a plate",)), named)


_TEXT = "text_encoder.clip.text_projection.weight"


def test_a_released_model_is_gone_on_from(golden_meissonic: Meissonic, tmp_path: Path) -> None:
    """Its folder is in the authors' layout, and its images have 128 pixels."""
    released = write_meissonic(tmp_path / "released", golden_meissonic)
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.new("RGB", (128, 128), "red").save(tmp_path / "images" / f"{i}.png")
        (tmp_path / "images" / f"{i}.txt").write_text("a small red circle")
    training = replace(FEW, num_steps=1, batch_size=2)
    recipe = base_recipe("meissonic", training, data=str(tmp_path / "images"), initial=str(released))
    tuned = swiftmask.load(replace(recipe, samples=SampleConfig(number=0)).run(tmp_path / "run")).model
    assert isinstance(tuned, Meissonic)
    assert tuned.size == (128, 128)
    assert not torch.equal(
        tuned.transformer.mlm_layer.conv2.weight, golden_meissonic.transformer.mlm_layer.conv2.weight.half()
    )


def test_memory_is_counted_by_optimizer() -> None:
    layer = torch.nn.Linear(1000, 1000)
    said = memory_needed(layer, FEW)
    assert said.startswith("1.0 million parameters; ")
    assert "take 0.02 GB" in said  # 5 numbers of 4 bytes each
    assert "take 0.016 GB" in memory_needed(layer, replace(FEW, muon_learning_rate=1e-3))
    layer.weight.requires_grad_(False)
    assert "(0.0 million of them trained)" in memory_needed(layer, FEW)
