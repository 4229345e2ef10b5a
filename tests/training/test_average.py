"""The averaged weights: what is averaged, what is shared, and what is copied."""

import pytest
import torch
from torch import nn

from swiftmask.training.average import Average


def test_the_average_follows_with_a_decay_that_warms_up():
    model = nn.Linear(1, 1, bias=False)
    average = Average(model, 0.5)
    seen = []
    for value in (1.0, 2.0, 4.0):
        nn.init.constant_(model.weight, value)
        average.update(model)
        seen.append(average.module.weight.item())
    expected, decays = [1.0], (2 / 11, 3 / 12)
    for value, decay in zip((2.0, 4.0), decays, strict=True):
        expected.append(decay * expected[-1] + (1 - decay) * value)
    assert seen == pytest.approx(expected)


def test_frozen_parameters_exist_once_and_buffers_follow():
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.BatchNorm1d(4))
    average = Average(model, 0.9)
    ours, theirs = average.module.state_dict(), model.state_dict()
    shared = {name for name in ours if ours[name].data_ptr() == theirs[name].data_ptr()}
    assert shared == {"0.weight", "0.bias"}
    model(torch.randn(8, 4))
    average.update(model)
    assert torch.equal(average.module[1].running_mean, model[1].running_mean)
