"""The readers' recipe: data is a function of the step, and steps lower the loss."""

import json

import pytest
import torch

from swiftmask.recipes import scenes_judge, scenes_readers, scenes_reward
from swiftmask.recipes.scenes_readers import held_out_accuracy, reader_batch, train_step
from swiftmask.rewards.scenes import load_reader
from swiftmask.rewards.scenes_networks import NETWORKS, ReaderConfig, ReaderNetwork


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    first, again, other = reader_batch(3, 5, 10), reader_batch(3, 5, 10), reader_batch(3, 6, 10)
    assert torch.equal(first.images_B3HW, again.images_B3HW)
    assert torch.equal(first.broken_B, again.broken_B)
    assert not torch.equal(first.images_B3HW, other.images_B3HW)
    assert first.images_B3HW.shape == (10, 3, 64, 64)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_few_steps_lower_the_loss(network: str) -> None:
    torch.manual_seed(0)
    model = ReaderNetwork(ReaderConfig(network=network, width=16))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    batch = reader_batch(0, 0, 8)
    losses = []
    for _ in range(8):
        loss, _ = train_step(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_tiny_run_leaves_a_reader_that_loads(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(scenes_readers, "held_out_accuracy", lambda reader: held_out_accuracy(reader, 8))
    recipe = scenes_readers.reader_recipe(
        "scenes-judge", ReaderConfig(network="hybrid", width=16), seed=1, num_steps=2
    )
    folder = recipe.run(tmp_path)
    reader = load_reader(folder)
    assert reader.features(torch.rand(3, 3, 64, 64)).shape[0] == 3
    measured = json.loads((folder / "provenance.json").read_text())["held_out_accuracy"]
    assert 0 <= measured["classes"] <= 1


def test_both_recipes_differ_in_network_and_seed() -> None:
    judge, reward = scenes_judge.recipe(), scenes_reward.recipe()
    assert judge.network.network != reward.network.network
    assert judge.training.seed != reward.training.seed
