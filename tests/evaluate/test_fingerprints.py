"""Fingerprints of weights: what they tell apart, and how often a tensor is hashed."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn

from swiftmask.evaluate import fingerprints
from swiftmask.evaluate.fingerprints import exact_fingerprint, weights_fingerprint
from swiftmask.methods.shortcut import ShortcutFeatures


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Elements of every tensor that is hashed, in turn."""
    sizes: list[int] = []
    plain = fingerprints._hash
    monkeypatch.setattr(
        fingerprints, "_hash", lambda tensor, how: (sizes.append(tensor.numel()), plain(tensor, how))[1]
    )
    return sizes


def test_a_base_is_hashed_once_however_many_accelerators_hold_it(
    golden_maskgit, golden_shortcut, hashed: list[int]
) -> None:
    parts = (golden_maskgit, golden_shortcut)
    num_weights, num_more = (sum(v.numel() for v in part.state_dict().values()) for part in parts)
    alone = exact_fingerprint(golden_maskgit)
    assert sum(hashed) == num_weights
    for _ in range(3):
        assert exact_fingerprint(golden_maskgit, ShortcutFeatures(golden_maskgit, golden_shortcut)) != alone
    assert exact_fingerprint(golden_maskgit) == alone
    assert sum(hashed) == num_weights + num_more


@torch.no_grad()
def test_every_way_to_change_a_weight_is_seen() -> None:
    def assign(layer: nn.Linear) -> None:
        layer.weight.data = layer.weight.data * 2

    changes: list[Callable[[nn.Linear], object]] = [
        lambda layer: layer.weight.mul_(2),
        lambda layer: torch._foreach_lerp_([layer.weight], [layer.weight * 2], 0.5),
        lambda layer: layer.weight.data.mul_(2),
        lambda layer: layer.load_state_dict({key: value + 1 for key, value in layer.state_dict().items()}),
        assign,
    ]
    layer = nn.Linear(6, 4)
    for fingerprint in (exact_fingerprint, weights_fingerprint):
        for change in changes:
            before = fingerprint(layer)
            assert fingerprint(layer) == before
            change(layer)
            assert fingerprint(layer) != before


def test_precision_counts_only_in_the_exact_one() -> None:
    layer = nn.Linear(6, 4)
    exact, rounded = exact_fingerprint(layer), weights_fingerprint(layer)
    layer.to(torch.bfloat16)
    half = exact_fingerprint(layer)
    assert half != exact
    assert weights_fingerprint(layer) == rounded
    layer.to(torch.float32)  # the numbers stay rounded
    assert exact_fingerprint(layer) not in (exact, half)


def test_nothing_is_kept_of_a_model_that_is_gone() -> None:
    layer = nn.Linear(6, 4)
    kept = fingerprints._kept["exact"]
    before = len(kept)
    exact_fingerprint(layer)
    assert len(kept) == before + 2
    del layer
    gc.collect()
    assert len(kept) == before
