"""The readers' recipe: data is a function of the step, and steps lower the loss."""

import pytest
import torch

from swiftmask.recipes.scenes_readers import reader_batch, train_reader, train_step
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


def test_an_unknown_reader_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="unknown reader 'critic': use one of scenes-judge, scenes-reward"):
        train_reader("critic", tmp_path)
