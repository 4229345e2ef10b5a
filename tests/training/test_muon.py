"""Muon on all matrices of a shape at once is torch's Muon, and a convolution is a matrix to it."""

import torch
from torch import nn

from swiftmask.training.muon import Muon, orthogonalised
from swiftmask.training.setup import TrainingConfig, make_optimizers

_SHAPES = [(16, 16), (8, 32), (32, 8), (16, 16), (8, 32)]


def test_updates_are_those_of_torch() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in _SHAPES]
    theirs = [nn.Parameter(matrix.detach().clone()) for matrix in ours]
    started = [matrix.detach().clone() for matrix in ours]
    batched = Muon(ours, lr=0.02, weight_decay=0.01)
    one_by_one = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for matrix, other in zip(ours, theirs, strict=True):
            matrix.grad = torch.randn_like(matrix)
            other.grad = matrix.grad.clone()
        batched.step()
        one_by_one.step()
    for matrix, other, start in zip(ours, theirs, started, strict=True):
        assert (matrix - other).norm() < 0.02 * (matrix - start).norm()  # torch iterates in bfloat16


def test_matrices_without_gradient_stay() -> None:
    still, moved = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([still, moved], lr=0.02, weight_decay=0.01)
    optimizer.step()
    moved.grad = torch.randn(4, 4)
    optimizer.step()
    assert torch.equal(still, torch.ones(4, 4)) and not torch.equal(moved, torch.ones(4, 4))
    assert still not in optimizer.state


def test_singular_values_come_near_one() -> None:
    found_NRC = orthogonalised(torch.randn(3, 24, 6, dtype=torch.float64))
    values = torch.linalg.svdvals(found_NRC)
    assert found_NRC.dtype == torch.float64 and found_NRC.shape == (3, 24, 6)
    assert 0.5 < values.min() and values.max() < 1.5


def test_a_convolution_is_a_matrix() -> None:
    torch.manual_seed(0)
    filters = nn.Parameter(torch.randn(8, 4, 3, 3))
    matrix = nn.Parameter(filters.detach().flatten(1).clone())
    for weights in (filters, matrix):
        optimizer = Muon([weights], lr=0.02, weight_decay=0.01)
        weights.grad = torch.arange(288.0).sin().view(weights.shape)
        optimizer.step()
    assert torch.equal(filters.flatten(1), matrix)


def test_what_muon_trains() -> None:
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(4, 8, 3),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "linear": nn.Linear(8, 8),
            "embedding": nn.Embedding(8, 8),
        }
    )
    config = TrainingConfig(num_steps=1, batch_size=1, muon_learning_rate=0.01)
    _, muon = make_optimizers(model, config)
    assert {id(p) for group in muon.param_groups for p in group["params"]} == {
        id(model["conv"].weight),
        id(model["linear"].weight),
    }
