"""`train marval` and `train marval-rl` on a toy MAR, any source with its classes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import swiftmask
from swiftmask.data.scenes import CLASS_NAMES
from swiftmask.data.sources import Classes, DataConfig, open_source
from swiftmask.models.mar import MAR
from swiftmask.models.mar.codec import KLCodec
from swiftmask.models.mar.network import Network
from swiftmask.models.mar.weights import RELEASED, RELEASED_KL
from swiftmask.recipes import (
    mar_scenes_marval,
    mar_scenes_marval_rl,
    marval,
    marval_rl,
)
from swiftmask.recipes.held_out import LOG_NAME
from swiftmask.recipes.marval import MarvalRecipe, RealTokens, teachers_labels, training_bytes
from swiftmask.recipes.marval_rl import MarvalRLRecipe, unclamped_pixels
from swiftmask.training.loop import Progress
from swiftmask.training.setup import TrainingConfig
from tests.recipes.conftest import assert_same_best

FEW = TrainingConfig(
    num_steps=4,
    batch_size=4,
    learning_rate=1e-3,
    betas=(0.0, 0.999),
    warmup_steps=1,
    precision="no",
    save_every=2,
    log_every=1,
)
SCENES = DataConfig(num_images=24)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each of five classes."""
    root = tmp_path_factory.mktemp("data") / "images"
    generator = np.random.default_rng(0)
    for label in range(5):
        (root / f"class-{label}").mkdir(parents=True)
        for number in range(2):
            pixels_HW3 = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels_HW3).save(root / f"class-{label}" / f"{number}.png")
    return root


def tiny(model: Path, data: Path | str, **settings: Any) -> MarvalRecipe:
    source = DataConfig(held_out=0.0)
    given = {"model": str(model), "data": str(data), "source": source, "training": FEW} | settings
    return replace(marval.recipe(), **given)


def kill_at(step: int, num_steps: int = 4) -> Callable[[Progress], None]:
    def kill(progress: Progress) -> None:
        if (progress.step, progress.num_steps) == (step, num_steps):
            raise KeyboardInterrupt

    return kill


@pytest.mark.parametrize("mirror", [False, True])
def test_any_images_of_the_teachers_classes(
    mirror: bool, toy_models: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    source = DataConfig(held_out=0.0, mirror=mirror)
    recipe = tiny(toy_models["mar"], images, source=source, part="head")
    seen: list[Progress] = []
    folder = recipe.run(tmp_path / "run", seen.append)
    assert [p.step for p in seen if p.num_steps == 10][-1] == 10
    fast = swiftmask.accelerate(swiftmask.load(toy_models["mar"]), marval=folder)
    assert fast.generate([4], steps=2).cost.calls["head"] == 2
    weights = load_file(folder / "model.safetensors")
    assert {name.split(".")[1] for name in weights} == {"diffloss"}
    again: list[Progress] = []
    recipe.run(tmp_path / "run", again.append)
    assert [p.step for p in again if p.what == "training"] == [4], "updates were made again"
    assert {p.step for p in again if p.what != "training"} == {10}, "images were encoded again"


def test_a_killed_run_continues_to_the_same_student(
    toy_models: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    recipe = tiny(toy_models["mar"], images, latents=tmp_path / "latents", source=DataConfig(held_out=0.4))
    with pytest.raises(KeyboardInterrupt):
        recipe.run(tmp_path / "killed", kill_at(3))
    whole, resumed = (load_file(recipe.run(tmp_path / n) / "model.safetensors") for n in ("whole", "killed"))
    assert any("encoder_blocks" in name for name in whole)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert_same_best(tmp_path / "whole", tmp_path / "killed")
    with pytest.raises(ValueError, match="other settings"):
        replace(recipe, marval=replace(recipe.marval, guidance=2.0)).run(tmp_path / "whole")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "model is not set: .* model=mar-b/"),
        ({"data": ""}, "data is not set"),
        ({"data": "scenes:captions"}, "has no classes"),
        ({"model": "maskgit"}, "is a maskgit, which has no diffusion head"),
        ({"data": "scenes:classes"}, "the data has 48 classes, the teacher knows 5"),
    ],
)
def test_what_does_not_fit_is_refused(
    settings: dict[str, str], message: str, toy_models: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    given = {key: str(toy_models.get(value, value)) for key, value in settings.items()}
    with pytest.raises(ValueError, match=message):
        replace(tiny(toy_models["mar"], images), **given).run(tmp_path / "run")


def test_labels_go_by_name_where_both_have_the_same(golden_mar: MAR) -> None:
    classes = Classes.of_columns([(name,) for name in ("e", "a", "b", "c", "d")])
    assert teachers_labels(classes, golden_mar).tolist() == [4, 0, 1, 2, 3]
    named = MAR(golden_mar.network, golden_mar.codec, class_names=tuple("edcba"))
    assert teachers_labels(classes, named).tolist() == [0, 4, 3, 2, 1]


def test_real_tokens_are_a_function_of_the_step(golden_mar: MAR, images: Path, tmp_path: Path) -> None:
    config = DataConfig(held_out=0.0, mirror=True)
    real = RealTokens.encoded(golden_mar, open_source(str(images), config), config, tmp_path)
    clean = real.clean(FEW)
    (once, labels), (again, _), (other, _) = clean(5, 0, 1), clean(5, 0, 1), clean(5, 1, 2)
    assert once.shape == (4, 16, 4)
    assert len(labels) == 4
    assert torch.equal(once, again)
    assert not torch.equal(once[:2], other)
    tokens_BLC, labels_B = real.draw(64, torch.Generator().manual_seed(3))
    assert tokens_BLC.std() > 0
    assert set(labels_B.tolist()) == set(range(5))


def test_two_processes_with_accumulation_leave_a_student(
    toy_models: dict[str, Path], images: Path, tmp_path: Path, in_processes: Callable[..., None]
) -> None:
    script = Path(__file__).with_name("marval_process.py")
    in_processes(script, toy_models["mar"], images, tmp_path / "run", count=2)
    fast = swiftmask.accelerate(swiftmask.load(toy_models["mar"]), marval=tmp_path / "run" / "model")
    assert fast.generate([4], steps=2).cost.calls["head"] == 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2]


@pytest.mark.parametrize(
    ("size", "alone", "sharded"), [("mar-b", 9.4, 5.5), ("mar-l", 21.3, 12.2), ("mar-h", 41.7, 23.8)]
)
def test_memory_of_released_sizes(size: str, alone: float, sharded: float) -> None:
    with torch.device("meta"):
        teacher = MAR(Network(RELEASED[size]), KLCodec(RELEASED_KL))
    counts = {name: parameter.numel() for name, parameter in teacher.named_parameters()}
    trained = sum(counts[name] for name in teacher.network_parameters())
    for processes, gigabytes in ((1, alone), (8, sharded)):
        found = training_bytes(sum(counts.values()), trained, sharded_over=processes)
        assert found / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.fixture(scope="module")
def student(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the toy teacher with the classes of Scenes."""
    recipe = tiny(teacher_folder, "scenes:classes", source=SCENES, training=replace(FEW, num_steps=2))
    return recipe.run(tmp_path_factory.mktemp("student"))


def tuning(teacher: Path, student: Path, **settings: Any) -> MarvalRLRecipe:
    real = mar_scenes_marval_rl.recipe()
    config = replace(real.tuning, num_steps=3, grad_iterations=2, images_per_update=2)
    given = {"tuning": config, "training": FEW, "source": SCENES, "judged": 4} | settings
    return replace(real, model=str(teacher), student=str(student), **given)


def test_tuning_ends_in_another_student_and_resumes(
    teacher_folder: Path, student: Path, tmp_path: Path
) -> None:
    recipe, seen = tuning(teacher_folder, student, latents=tmp_path / "latents"), set[str]()
    folder = recipe.run(tmp_path / "whole", lambda progress: seen.update(progress.metrics))
    assert {"reward", "score_gap", "auxiliary_loss"} <= seen
    before, after = (load_file(path / "model.safetensors") for path in (student, folder))
    assert set(before) == set(after)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    judged = [json.loads(line) for line in (tmp_path / "whole" / LOG_NAME).read_text().splitlines()]
    assert [list(line) for line in judged] == [["step", "scenes-judge", "scenes-reward"]] * 2
    assert all(0 <= line["scenes-judge"] <= 1 for line in judged)
    with pytest.raises(KeyboardInterrupt):
        recipe.run(tmp_path / "killed", kill_at(3))
    resumed = load_file(recipe.run(tmp_path / "killed") / "model.safetensors")
    assert all(torch.equal(resumed[name], after[name]) for name in after)
    assert_same_best(tmp_path / "whole", tmp_path / "killed")


def test_without_divergence_there_is_no_auxiliary_network_and_no_data(
    teacher_folder: Path, student: Path, tmp_path: Path
) -> None:
    recipe, seen = tuning(teacher_folder, student, data=""), set[str]()
    alone = replace(recipe, tuning=replace(recipe.tuning, divergence_weight=0.0))
    alone.run(tmp_path, lambda progress: seen.update(progress.metrics))
    assert "reward" in seen
    assert not {"auxiliary_loss", "score_gap"} & seen
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student": ""}, "student is not set"),
        ({"reward": ()}, "reward is not set"),
        ({"held_out": ()}, "held_out is not set"),
        ({"reward": ("aesthetic",)}, "aesthetic needs its weights"),
        ({"reward": ("own_module:score",)}, "has no gradient"),
    ],
)
def test_mistakes_of_a_tuning(
    settings: dict[str, Any], message: str, teacher_folder: Path, student: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(tuning(teacher_folder, student), **settings).run(tmp_path)


def test_gradients_pass_pixels_that_to_pixels_clamps(teacher_folder: Path) -> None:
    teacher = MAR.from_pretrained(teacher_folder).requires_grad_(False)
    assert teacher.codec.decoder.conv_out.bias is not None
    teacher.codec.decoder.conv_out.bias.fill_(5.0)  # every pixel far above 1
    tokens_BLC = torch.randn(2, 16, 4, requires_grad=True)
    for paint, reached in ((teacher.to_pixels, False), (unclamped_pixels(teacher), True)):
        images_B3HW = paint(tokens_BLC)
        torch.testing.assert_close(images_B3HW.clamp(0, 1), teacher.to_pixels(tokens_BLC))
        (gradient_BLC,) = torch.autograd.grad(images_B3HW.sum(), tokens_BLC)
        assert bool(gradient_BLC.abs().sum() > 0) == reached


def test_presets() -> None:
    scenes = mar_scenes_marval.recipe()
    assert (scenes.model, scenes.data) == ("mar-scenes", "scenes:classes")
    assert mar_scenes_marval_rl.recipe().tuning == marval_rl.recipe().tuning
    assert swiftmask.load(scenes.model).model.class_names == CLASS_NAMES  # type: ignore[attr-defined]
