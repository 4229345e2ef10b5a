"""Fingerprints of weights and settings: what they tell apart, and how often a tensor is hashed."""

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from swiftmask.cli import measure
from swiftmask.core.protocol import FeatureFn
from swiftmask.evaluate import fingerprints
from swiftmask.evaluate.fingerprints import exact_fingerprint, weights_fingerprint
from swiftmask.methods.caching import (
    ExtrapolatedFeatures,
    MLCacheFeatures,
    ReuseFeatures,
    lowest_peaks,
    refreshed_first,
)
from swiftmask.methods.caching.ml_cache import Urgency
from swiftmask.methods.shortcut import Shortcut, ShortcutConfig, ShortcutFeatures
from swiftmask.pipeline import Pipeline


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


def _reused_rule(peaks_XT: torch.Tensor, decided_XN: torch.Tensor) -> Urgency:
    return lowest_peaks(peaks_XT, decided_XN)


def test_settings_of_an_accelerator_count(golden_dimoo) -> None:
    """Each is made twice: equal settings agree, others differ, in rows, drift files and presets."""

    def made() -> list[FeatureFn]:
        return [
            ReuseFeatures(golden_dimoo),
            *(ExtrapolatedFeatures(golden_dimoo, order) for order in (1, 2)),
            *(MLCacheFeatures(golden_dimoo, cache_ratio=ratio) for ratio in (0.9, 0.5)),
            *(MLCacheFeatures(golden_dimoo, rule=rule) for rule in (refreshed_first, _reused_rule)),
        ]

    base = Pipeline(golden_dimoo)
    rows = [[measure.fingerprint(replace(base, features_fn=each)) for each in made()] for _ in range(2)]
    assert rows[0] == rows[1]
    assert len({*rows[0], measure.fingerprint(base)}) == len(made()) + 1
    presets = [weights_fingerprint(golden_dimoo, each) for each in made()]
    assert len(set(presets)) == len(presets)
    assert presets == [weights_fingerprint(golden_dimoo, each) for each in made()]
    assert presets[0] == weights_fingerprint(golden_dimoo), "what has no settings needs none"


def test_settings_of_a_network_count(golden_maskgit) -> None:
    """Four heads or two have weights of one shape."""
    width = golden_maskgit.spec.width
    shortcuts = [Shortcut(ShortcutConfig(width=width, bottleneck_width=8, num_heads=n)) for n in (4, 2, 4)]
    for shortcut in shortcuts:
        shortcut.load_state_dict(shortcuts[0].state_dict())
    found = [exact_fingerprint(ShortcutFeatures(golden_maskgit, shortcut)) for shortcut in shortcuts]
    assert found[0] == found[2] != found[1]


def test_a_rule_that_its_name_does_not_tell_apart_is_refused(golden_dimoo) -> None:
    for rule in (lambda peaks, decided: Urgency(peaks, 0), partial(lowest_peaks)):
        features_fn = MLCacheFeatures(golden_dimoo, rule=rule)
        with pytest.raises(ValueError, match="expected a plain function"):
            exact_fingerprint(features_fn)
