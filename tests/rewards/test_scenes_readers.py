"""The bundled readers read clean images, notice wrong prompts, and see nothing in broken pictures."""

from pathlib import Path

import pytest
import torch

from swiftmask.data.scenes import (
    NUM_CLASSES,
    caption_facts,
    captions,
    class_facts,
    class_scenes,
    render,
    sample_scenes,
)
from swiftmask.rewards.scenes import (
    NetworkReader,
    caption_reward,
    class_reward,
    load_judge,
    load_reader,
    load_reward,
    scenes_of,
    score,
)
from swiftmask.rewards.scenes_likelihood import class_log_likelihood
from swiftmask.rewards.scenes_networks import GRID, ReaderConfig, ReaderNetwork, Reading

FIRST_SEED = 2**40 + 50_000  # disjoint from training and from the seeds of the recorded accuracies


@pytest.fixture(scope="module", params=[load_judge, load_reward], ids=["judge", "reward"])
def reader(request: pytest.FixtureRequest) -> NetworkReader:
    return request.param()


@pytest.mark.parametrize("size", [64, 48, 128])
def test_clean_scenes_are_read(reader: NetworkReader, size: int) -> None:
    scenes = sample_scenes(range(FIRST_SEED, FIRST_SEED + 300))
    assert score(reader, render(scenes, size), caption_facts(scenes)).mean() >= 0.97


def test_class_images_are_read(reader: NetworkReader) -> None:
    labels_B = torch.arange(NUM_CLASSES).repeat(6)
    scenes = class_scenes(labels_B, range(FIRST_SEED, FIRST_SEED + len(labels_B)))
    images_B3HW = render(scenes)
    assert class_reward(reader)(images_B3HW, labels_B).mean() >= 0.97
    shuffled_B = labels_B.roll(11)
    assert score(reader, images_B3HW, class_facts(shuffled_B)).mean() < 0.6


def test_wrong_captions_score_lower(reader: NetworkReader) -> None:
    scenes = sample_scenes(range(FIRST_SEED, FIRST_SEED + 100))
    reward, images_B3HW, texts = caption_reward(reader), render(scenes), captions(scenes)
    assert reward(images_B3HW, texts).mean() - reward(images_B3HW, texts[1:] + texts[:1]).mean() > 0.4


def test_places_are_read(reader: NetworkReader) -> None:
    scenes = sample_scenes(range(FIRST_SEED, FIRST_SEED + 200), num_objects=1)
    read = reader.read(render(scenes))
    for true_BO, read_BO in ((scenes.x_BO, read.x_BO), (scenes.y_BO, read.y_BO)):
        assert (true_BO[:, 0] - read_BO[:, 0]).abs().median() < 1 / 64


def test_broken_images_show_no_objects(reader: NetworkReader) -> None:
    images_B3HW = render(sample_scenes(range(FIRST_SEED, FIRST_SEED + 100)))
    blended_B3HW = (images_B3HW + images_B3HW.roll(1, dims=0)) / 2
    noise_B3HW = torch.rand(images_B3HW.shape, generator=torch.Generator().manual_seed(0))
    assert reader.read(blended_B3HW).count_B.float().mean() < 0.3
    assert reader.read(noise_B3HW).count_B.float().mean() < 0.3


def test_features_describe_each_image_alone(reader: NetworkReader) -> None:
    images_B3HW = render(sample_scenes(range(6)))
    features_BD = reader.features(images_B3HW)
    assert features_BD.shape == (6, 128)
    assert torch.allclose(reader.features(images_B3HW[2:3]), features_BD[2:3], atol=1e-4)


def test_the_two_readers_are_different_networks() -> None:
    assert load_judge().network.config.network != load_reward().network.config.network


def test_objects_come_out_from_left_to_right() -> None:
    heat_BHW = torch.full((1, GRID, GRID), -9.0)
    heat_BHW[0, 3, 12], heat_BHW[0, 10, 2] = 5.0, 4.0
    shape_BHWK = torch.zeros(1, GRID, GRID, 6)
    shape_BHWK[0, 3, 12, 5], shape_BHWK[0, 10, 2, 1] = 9.0, 9.0
    choices = [torch.zeros(1, GRID, GRID, num) for num in (8, 2, 2)]
    whole = [torch.zeros(1, num) for num in (4, 8, 4, 6, 8)]
    scenes = scenes_of(Reading(heat_BHW, shape_BHWK, *choices, *whole))
    assert scenes.count_B.tolist() == [2]
    assert scenes.shape_BO.tolist() == [[1, 5, -1]]
    assert torch.allclose(scenes.x_BO, torch.tensor([[2.5, 12.5, 0.0]]) / GRID)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no .*config\.json: a reader is a folder with"):
        load_reader(tmp_path)
    with pytest.raises(ValueError, match="network must be 'residual' or 'hybrid', got 'vit'"):
        ReaderNetwork(ReaderConfig(network="vit"))


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
