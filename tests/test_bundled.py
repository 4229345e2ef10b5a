"""The bundled weights: they fit in the package, load as anyone would load them, and draw what is asked."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import swiftmask
from swiftmask import registry
from swiftmask.cli import measure
from swiftmask.cli.scoring import scenes_of
from swiftmask.core.protocol import SamplingOptions
from swiftmask.data.emoji.build import pack_images, read_records
from swiftmask.data.emoji.records import trained_prompts
from swiftmask.data.scenes import NUM_CLASSES
from swiftmask.recipes.tokenizer_files import read_tokenizer
from swiftmask.rewards.reader import load_column_reader
from swiftmask.rewards.scenes import caption_reward, class_reward, load_judge

PACK = Path(__file__).parents[1] / "data" / "emoji"
MODELS = registry.bundled_names("model")
OF_SCENES = [model for model in MODELS if model.endswith("-scenes")]
METHODS = [
    (model, method)
    for model in MODELS
    for method in ("shortcut", "marval", "marval-rl", "speed-rl")
    if measure.has_own(model, method)
]
FASTER = SamplingOptions(sampler="ddim", denoising_steps=10)
"""Ten denoising steps say as much as a hundred."""


def judged(pipeline: swiftmask.Pipeline, *, steps: int) -> float:
    """Share of the facts that the judge finds in 24 pictures."""
    seeds = list(range(24))
    if pipeline.model.spec.draws == "class":
        labels = [(7 * seed) % NUM_CLASSES for seed in seeds]
        images = pipeline.generate(labels, seeds=seeds, steps=steps, output_type="pt").images
        assert isinstance(images, torch.Tensor)
        return class_reward(load_judge())(images, torch.tensor(labels)).mean().item()
    requests = scenes_of(pipeline)
    assert requests is not None
    assert requests.world is not None
    captions = requests.world.captions(torch.tensor(seeds))
    images = pipeline.generate(prompts=captions, seeds=seeds, steps=steps, output_type="pt").images
    assert isinstance(images, torch.Tensor)
    return caption_reward(load_judge())(images, captions).mean().item()


def loaded(model: str) -> swiftmask.Pipeline:
    pipeline = swiftmask.load(model)
    if not measure.has_diffusion_head(pipeline):
        return pipeline
    return replace(pipeline, sampling=FASTER.over(pipeline.sampling))


def draws_emoji(pipeline: swiftmask.Pipeline) -> None:
    """Of 48 images of pairs that it was trained on, the judge names style (of four) and group (of ten) more
    often than by chance (0.25 and 0.1), by two standard deviations and more.
    """
    asked = trained_prompts(read_records(PACK))[:48]
    group_of = {record.concept: record.group for record in read_records(PACK)}
    prompts, classes = zip(*((each.prompt, f"{each.concept}, {each.style}") for each in asked), strict=True)
    wanted: dict[str, Any] = (
        {"labels": classes} if pipeline.model.spec.draws == "class" else {"prompts": prompts}
    )
    images = pipeline.generate(**wanted, seeds=range(48), steps=12, output_type="pt").images
    assert isinstance(images, torch.Tensor)
    reader = load_column_reader("emoji-judge", torch.device("cpu"))
    rows = [{"style": each.style, "group": group_of[each.concept]} for each in asked]
    values = reader.wanted(rows, prompts)
    logits = [reader(images).logits[column] for column in values.columns]
    right = {
        reader.column_names[column]: (own.argmax(1) == value_B).float().mean().item()
        for column, own, value_B in zip(values.columns, logits, values.values_NA.unbind(1), strict=True)
    }
    assert right["style"] > 0.4
    assert right["group"] > 0.3


@pytest.mark.parametrize("folder", sorted(registry.WEIGHTS.iterdir()), ids=lambda folder: folder.name)
def test_weights_are_small_and_say_how_they_were_made(folder: Path) -> None:
    assert all(file.stat().st_size <= 8_000_000 for file in folder.rglob("*") if file.is_file())
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["recipe"] in registry.recipe_names()


@pytest.mark.parametrize("model", OF_SCENES)
def test_a_bundled_model_draws_what_is_asked(model: str) -> None:
    assert judged(loaded(model), steps=8) > 0.7


@pytest.mark.parametrize("model", [model for model in MODELS if model not in OF_SCENES])
def test_a_bundled_model_of_emoji_draws_style_and_group(model: str) -> None:
    draws_emoji(loaded(model))


@pytest.mark.parametrize(("model", "method"), METHODS)
def test_a_bundled_accelerator_goes_with_its_model(model: str, method: str) -> None:
    weights = f"{model}-{method}"
    match method:
        case "shortcut":
            fast = swiftmask.accelerate(loaded(model), shortcut=weights, full_steps=5)
        case "marval" | "marval-rl":
            fast = swiftmask.accelerate(swiftmask.load(model), marval=weights)
        case _:
            fast = swiftmask.accelerate(loaded(model), speed_rl=weights)
    if model not in OF_SCENES:
        draws_emoji(fast)
        return
    least = 0.6 if weights == "dimoo-scenes-shortcut" else 0.7  # no gain, and measured as such
    assert judged(fast, steps=8) > least


@pytest.mark.parametrize("name", ["emoji-tokenizer", "emoji-codec"])
def test_a_bundled_tokenizer_keeps_what_images_show(name: str) -> None:
    """24 images that it was not trained on, at the ratio in dB that its provenance states for all of them."""
    records = read_records(PACK)
    pairs = zip(records, pack_images(PACK, records), strict=True)
    held_out = [image for record, image in pairs if record.split == "held-out"][:24]
    images = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in held_out])
    codec = read_tokenizer(name).codec
    error_B = (codec.decode(codec.encode(images)) - images).square().flatten(1).mean(1)
    stated = registry.describe(registry.bundled_folder(name)).measured["psnr_db"]
    assert isinstance(stated, float)
    assert (-10 * error_B.log10()).mean().item() == pytest.approx(stated, abs=1.5)
    assert stated > 26


@pytest.mark.parametrize("name", ["emoji-judge", "emoji-reward"])
def test_a_bundled_reader_of_emoji_names_what_real_images_show(name: str) -> None:
    """Of 1,563 concepts, in 161 images."""
    records = read_records(PACK)
    pairs = list(zip(records, pack_images(PACK, records), strict=True))[::39]
    images = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for _, image in pairs])
    reader = load_column_reader(name, torch.device("cpu"))
    wanted = reader.wanted(
        [{"concept": record.concept} for record, _ in pairs], [record.caption for record, _ in pairs]
    )
    (column,) = wanted.columns
    named_B = reader(images).logits[column].argmax(1)
    assert (named_B == wanted.values_NA[:, 0]).float().mean() > 0.75
