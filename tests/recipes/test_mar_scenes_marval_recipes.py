"""The recipes of mar-scenes-marval and mar-scenes-marval-rl at toy size, and what they are made of."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import swiftmask
from swiftmask.data.scenes import NUM_CLASSES, class_scenes, render
from swiftmask.methods.marval import Student
from swiftmask.models.mar import MAR
from swiftmask.models.mar.codec import KLCodec
from swiftmask.recipes import mar_scenes_marval, mar_scenes_marval_rl
from swiftmask.recipes.mar_scenes_marval import SceneStudentRecipe, scene_latents
from swiftmask.recipes.mar_scenes_marval_rl import RewardRecipe, unclamped_pixels
from swiftmask.recipes.marval_distillation import clean_tokens, read_teacher
from swiftmask.rewards.scenes import load_reward
from swiftmask.rewards.scenes_likelihood import class_log_likelihood
from swiftmask.training.loop import Progress
from swiftmask.training.setup import TrainingConfig

FEW = TrainingConfig(
    num_steps=4, batch_size=4, learning_rate=1e-3, warmup_steps=1, precision="no", save_every=2, log_every=1
)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches that the runs of this file share."""
    return tmp_path_factory.mktemp("latents")


@pytest.fixture(scope="module")
def distillation(teacher_folder: Path, latents: Path) -> SceneStudentRecipe:
    real = mar_scenes_marval.recipe()
    return replace(real, teacher=str(teacher_folder), training=FEW, num_pictures=24, latents=latents)


@pytest.fixture(scope="module")
def student_folder(distillation: SceneStudentRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distillation.run(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def tuning(teacher_folder: Path, latents: Path, student_folder: Path) -> RewardRecipe:
    real = mar_scenes_marval_rl.recipe()
    return replace(
        real,
        teacher=str(teacher_folder),
        student=str(student_folder),
        tuning=replace(real.tuning, num_steps=3, grad_iterations=2, images_per_update=2),
        training=FEW,
        num_pictures=24,
        latents=latents,
    )


@pytest.fixture(scope="module")
def tuned(tuning: RewardRecipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """The folder of a tuned student, and which metrics were logged."""
    seen: set[str] = set()
    folder = tuning.run(tmp_path_factory.mktemp("tuned"), lambda progress: seen.update(progress.metrics))
    return folder, seen


def kill_at(step: int) -> Callable[[Progress], None]:
    def kill(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return kill


def test_a_toy_run_ends_in_a_student_that_draws(teacher_folder: Path, student_folder: Path) -> None:
    teacher = swiftmask.load(teacher_folder)
    fast = swiftmask.accelerate(teacher, marval=student_folder)
    assert isinstance(fast.model, Student)
    result = fast.generate(["red circle"], steps=2, output_type="pt")
    assert isinstance(result.images, torch.Tensor)
    assert result.images.shape == (1, 3, 64, 64)
    assert (result.cost.calls["head"], result.cost.calls["branches"]) == (2, 1)
    weights = load_file(student_folder / "model.safetensors")
    teachers = load_file(teacher_folder / "model.safetensors")
    assert any("encoder_blocks" in name for name in weights)
    assert all(not torch.equal(weights[name].float(), teachers[name]) for name in weights if "mlp" in name)


def test_a_killed_run_continues_to_the_same_student(
    distillation: SceneStudentRecipe, student_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        distillation.run(tmp_path, kill_at(3))
    resumed, whole = (
        load_file(f / "model.safetensors") for f in (distillation.run(tmp_path), student_folder)
    )
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_run_with_another_loss_is_not_continued(
    distillation: SceneStudentRecipe, student_folder: Path
) -> None:
    other = replace(distillation, marval=replace(distillation.marval, guidance=2.0))
    with pytest.raises(ValueError, match="other settings"):
        other.run(student_folder.parent)


def test_the_cheap_variant_trains_the_head_alone(distillation: SceneStudentRecipe, tmp_path: Path) -> None:
    folder = replace(distillation, part="head").run(tmp_path)
    assert {name.split(".")[1] for name in load_file(folder / "model.safetensors")} == {"diffloss"}


def test_clean_tokens_are_a_function_of_the_step(teacher_folder: Path, latents: Path) -> None:
    cached = scene_latents(MAR.from_pretrained(teacher_folder), latents, 24)
    clean = clean_tokens(cached.draw, FEW, torch.device("cpu"))
    (once, labels), (again, _), (other, _) = clean(5, 0, 1), clean(5, 0, 1), clean(5, 1, 2)
    assert once.shape == (4, 16, 4)
    assert len(labels) == 4
    assert torch.equal(once, again)
    assert other.shape == (2, 16, 4)
    assert not torch.equal(once[:2], other)


def test_latents_of_another_codec_are_not_taken(teacher_folder: Path, latents: Path) -> None:
    teacher = MAR.from_pretrained(teacher_folder)
    first = scene_latents(teacher, latents, 24)
    teacher.codec.load_state_dict(KLCodec(teacher.codec.config).state_dict())
    second = scene_latents(teacher, latents, 24)
    assert torch.equal(first.labels_X, second.labels_X)
    assert not torch.equal(first.moments_XEHW, second.moments_XEHW)


def test_without_its_teacher_a_recipe_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="swiftmask train mar-scenes"):
        read_teacher(tmp_path / "nowhere", trained_by="mar-scenes")


def test_tuning_ends_in_another_student(
    tuned: tuple[Path, set[str]], teacher_folder: Path, student_folder: Path
) -> None:
    folder, seen = tuned
    assert {"reward", "score_gap", "auxiliary_loss"} <= seen
    before, after = (load_file(path / "model.safetensors") for path in (student_folder, folder))
    assert set(before) == set(after)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    teacher = swiftmask.load(teacher_folder)
    assert swiftmask.accelerate(teacher, marval=folder).generate([3], steps=2).cost.calls["head"] == 2


def test_without_divergence_there_is_no_auxiliary_network_and_no_data(
    tuning: RewardRecipe, tmp_path: Path
) -> None:
    seen: set[str] = set()
    alone = replace(
        tuning,
        tuning=replace(tuning.tuning, divergence_weight=0.0),
        training=replace(FEW, num_steps=1),
        latents=tmp_path / "latents",
    )
    alone.run(tmp_path / "run", lambda progress: seen.update(progress.metrics))
    assert "reward" in seen
    assert not {"auxiliary_loss", "score_gap"} & seen
    assert not (tmp_path / "latents").exists()


def test_a_killed_tuning_continues_to_the_same_student(
    tuning: RewardRecipe, tuned: tuple[Path, set[str]], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        tuning.run(tmp_path, kill_at(3))
    resumed, whole = (load_file(path / "model.safetensors") for path in (tuning.run(tmp_path), tuned[0]))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


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


def test_unclamped_pixels_are_to_pixels_inside_the_range(teacher_folder: Path) -> None:
    teacher = MAR.from_pretrained(teacher_folder).requires_grad_(False)
    teacher.codec.decoder.conv_out.weight.mul_(0.1)
    tokens_BLC = torch.randn(2, 16, 4)
    images_B3HW = unclamped_pixels(teacher)(tokens_BLC)
    assert images_B3HW.min() > 0
    assert images_B3HW.max() < 1
    torch.testing.assert_close(images_B3HW, teacher.to_pixels(tokens_BLC))


def test_soft_reward_knows_the_right_class_and_has_gradients_where_it_is_wrong() -> None:
    reward = class_log_likelihood(load_reward())
    labels_B = torch.tensor([0, 13, 29, 47])
    images_B3HW = render(class_scenes(labels_B, torch.arange(4))).requires_grad_()
    right_B = reward(images_B3HW, labels_B.tolist())
    wrong_B = reward(images_B3HW, ((labels_B + 9) % NUM_CLASSES).tolist())  # another shape and colour
    assert right_B.shape == (4,)
    assert right_B.max() <= 0
    assert right_B.min() > -0.1
    assert wrong_B.max() < -1
    (gradient_B3HW,) = torch.autograd.grad(wrong_B.sum(), images_B3HW)
    assert gradient_B3HW.flatten(1).norm(dim=1).min() > 1e-3
