"""The recipes image-latents and marval-imagenet at toy size, on a folder of tiny pictures."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import swiftmask
from swiftmask.data.images import CachedLatents
from swiftmask.methods.marval import network_parameters
from swiftmask.models.mar import MAR
from swiftmask.models.mar.codec import KLCodec, KLConfig
from swiftmask.models.mar.network import Network
from swiftmask.models.mar.weights import RELEASED, RELEASED_KL
from swiftmask.recipes import image_latents, marval_imagenet
from swiftmask.recipes.image_latents import LatentsRecipe
from swiftmask.recipes.marval_imagenet import ImageStudentRecipe, draw_from, released_name, training_bytes
from swiftmask.training.loop import Progress
from swiftmask.training.setup import TrainingConfig


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two pictures of each of five classes."""
    generator = np.random.default_rng(0)
    for label in range(5):
        folder = tmp_path / "images" / f"class-{label}"
        folder.mkdir(parents=True)
        for number in range(2):
            pixels_HW3 = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels_HW3).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def student_recipe(tmp_path: Path, images: Path, golden_mar: MAR) -> ImageStudentRecipe:
    golden_mar.save_pretrained(tmp_path / "teacher", provenance={})
    few = TrainingConfig(
        num_steps=2,
        batch_size=4,
        learning_rate=1e-3,
        warmup_steps=1,
        precision="no",
        save_every=1,
        log_every=1,
    )
    return replace(
        marval_imagenet.recipe(),
        teacher=tmp_path / "teacher",
        latents=LatentsRecipe(images=images, batch_size=4),
        training=few,
        part="head",
    )


def test_a_toy_run_caches_and_distils(student_recipe: ImageStudentRecipe, tmp_path: Path) -> None:
    seen: list[Progress] = []
    folder = student_recipe.run(tmp_path / "run", seen.append)
    cached = [progress for progress in seen if progress.num_steps == 10]
    assert [progress.step for progress in cached] == [0, 4, 8, 10]
    assert seen[-1].step == seen[-1].num_steps == 2
    fast = swiftmask.accelerate(swiftmask.load(tmp_path / "teacher"), marval=folder)
    assert fast.generate([4], steps=2).cost.calls["head"] == 2
    again: list[Progress] = []
    weights = load_file(folder / "model.safetensors")
    resumed = load_file(student_recipe.run(tmp_path / "run", again.append) / "model.safetensors")
    assert [progress.step for progress in again] == [10], "images were encoded or updates made again"
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


@pytest.mark.parametrize(
    ("size", "alone", "sharded"), [("mar-b", 9.4, 5.5), ("mar-l", 21.3, 12.2), ("mar-h", 41.7, 23.8)]
)
def test_memory_of_released_sizes(size: str, alone: float, sharded: float) -> None:
    with torch.device("meta"):
        teacher = MAR(Network(RELEASED[size]), KLCodec(RELEASED_KL))
    counts = {name: parameter.numel() for name, parameter in teacher.named_parameters()}
    trained = sum(counts[name] for name in network_parameters(teacher))
    for processes, gigabytes in ((1, alone), (8, sharded)):
        found = training_bytes(sum(counts.values()), trained, sharded_over=processes)
        assert found / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_two_processes_with_accumulation_leave_a_student(
    tmp_path: Path, images: Path, golden_mar: MAR, in_processes: Callable[..., None]
) -> None:
    golden_mar.save_pretrained(tmp_path / "teacher", provenance={})
    script = Path(__file__).with_name("marval_imagenet_process.py")
    in_processes(script, tmp_path / "teacher", images, tmp_path / "run", count=2)
    fast = swiftmask.accelerate(swiftmask.load(tmp_path / "teacher"), marval=tmp_path / "run" / "model")
    assert fast.generate([4], steps=2).cost.calls["head"] == 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2]


def test_draws_are_tokens_with_the_labels_of_their_folders(
    student_recipe: ImageStudentRecipe, tmp_path: Path, golden_mar: MAR
) -> None:
    cached = student_recipe.latents.encode(golden_mar.codec, tmp_path / "latents")
    draw = draw_from(cached, patch_size=1)
    tokens_BLC, labels_B = draw(64, torch.Generator().manual_seed(3))
    assert tokens_BLC.shape == (64, 16, 4)
    assert set(labels_B.tolist()) == set(range(5))
    assert torch.equal(tokens_BLC, draw(64, torch.Generator().manual_seed(3))[0])


def test_another_number_of_classes_is_refused(student_recipe: ImageStudentRecipe, tmp_path: Path) -> None:
    for file in (tmp_path / "images" / "class-4").iterdir():
        file.unlink()
    (tmp_path / "images" / "class-4").rmdir()
    with pytest.raises(ValueError, match="4 classes, the teacher knows 5"):
        student_recipe.run(tmp_path / "run")


@pytest.mark.parametrize("key", ["teacher", "latents.codec", "images"])
def test_what_is_not_set_is_named(student_recipe: ImageStudentRecipe, tmp_path: Path, key: str) -> None:
    recipe = student_recipe
    if key == "images":
        recipe = replace(recipe, latents=LatentsRecipe())
    else:
        recipe = replace(recipe, teacher=None if key == "teacher" else tmp_path / "mar_base.pth")
    with pytest.raises(ValueError, match=f"{key} is not set"):
        recipe.run(tmp_path / "run")


def test_latents_by_the_released_codec_file(images: Path, tmp_path: Path) -> None:
    sizes = KLConfig(ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), resolution=16, z_channels=2)
    torch.save({"model": KLCodec(sizes).state_dict()}, tmp_path / "kl16.ckpt")
    recipe = replace(image_latents.recipe(), images=images, codec=tmp_path / "kl16.ckpt")
    cached = CachedLatents.open(recipe.run(tmp_path / "latents"), scale=sizes.scale)
    assert len(cached) == 10
    assert cached.index.moments == (4, 16, 16)
    with pytest.raises(ValueError, match="codec is not set"):
        replace(recipe, codec=None).run(tmp_path / "latents")


def test_names_of_released_sizes(golden_mar: MAR, monkeypatch: pytest.MonkeyPatch) -> None:
    assert released_name(golden_mar) is None
    monkeypatch.setitem(RELEASED, "mar-b", golden_mar.network.config)
    assert released_name(golden_mar) == "mar-b"
