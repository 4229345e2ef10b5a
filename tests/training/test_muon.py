"""Muon on all matrices of a shape at once is torch's Muon."""

import torch
from torch import nn
from torch.optim import Muon

from swiftmask.training.muon import BatchedMuon, orthogonalised

_SHAPES = [(16, 16), (8, 32), (32, 8), (16, 16), (8, 32)]
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def test_updates_are_those_of_torch() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in _SHAPES]
    theirs = [nn.Parameter(matrix.detach().clone()) for matrix in ours]
    started = [matrix.detach().clone() for matrix in ours]
    batched = BatchedMuon(ours, lr=0.02, weight_decay=0.01)
    one_by_one = Muon(theirs, lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
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
    optimizer = BatchedMuon([still, moved], lr=0.02, weight_decay=0.01)
    optimizer.step()
    moved.grad = torch.randn(4, 4)
    optimizer.step()
    assert torch.equal(still, torch.ones(4, 4)) and not torch.equal(moved, torch.ones(4, 4))
    assert still not in optimizer.state


def test_singular_values_come_near_one() -> None:
    found_NRC = orthogonalised(torch.randn(3, 24, 6, dtype=torch.float64), _COEFFICIENTS, 5)
    values = torch.linalg.svdvals(found_NRC)
    assert found_NRC.dtype == torch.float64 and found_NRC.shape == (3, 24, 6)
    assert 0.5 < values.min() and values.max() < 1.5
