"""The shortcut in the decode loop."""

import copy

import pytest
import torch

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import FeatureFn, SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.core.schedule import with_full_steps
from swiftmask.core.types import Record, Trajectory
from swiftmask.core.unmask import by_confidence
from swiftmask.methods.shortcut import Shortcut, ShortcutConfig, ShortcutFeatures
from swiftmask.models.maskgit import MaskGIT

NUM_STEPS = 6


def _decode(
    model: MaskGIT,
    features_fn: FeatureFn,
    *,
    full: list[int],
    guidance: float = 3.8,
    on_step: list[Record] | None = None,
) -> Trajectory:
    options = SamplingOptions(guidance=guidance)
    schedule = with_full_steps(model.schedule(NUM_STEPS, num_masked=16, options=options), full)
    return decode(
        model,
        prepare_condition(model, model.encode([3, 1]), schedule),
        schedule,
        SeededNoise([0, 5], model.spec.num_tokens, model.device),
        canvas=model.blank(2),
        features_fn=features_fn,
        unmask=by_confidence,
        on_step=None if on_step is None else on_step.append,
    )


def test_all_steps_full_is_vanilla(golden_maskgit: MaskGIT, golden_shortcut: Shortcut) -> None:
    everything = list(range(NUM_STEPS))
    vanilla = _decode(golden_maskgit, FullFeatures(golden_maskgit), full=everything)
    ours = _decode(golden_maskgit, ShortcutFeatures(golden_maskgit, golden_shortcut), full=everything)
    assert torch.equal(ours.tokens_BL, vanilla.tokens_BL)
    assert torch.equal(ours.decided_at_BL, vanilla.decided_at_BL)


@pytest.mark.parametrize("guidance", [1.0, 3.8])
def test_shortcut_steps_read_the_step_before(
    guidance: float, golden_maskgit: MaskGIT, golden_shortcut: Shortcut
) -> None:
    """One call per branch by hand equals the batched one, and shortcut steps chain."""
    records: list[Record] = []
    features_fn = ShortcutFeatures(golden_maskgit, golden_shortcut)
    _decode(golden_maskgit, features_fn, full=[0, 3], guidance=guidance, on_step=records)
    num_branches = 1 if guidance == 1.0 else 2
    for before, record in zip(records, records[1:], strict=False):
        ours_GBTD = record.features.features_GBTD
        assert ours_GBTD.shape == (num_branches, 2, 17, 48)
        if record.step.full:
            continue
        embedded_BND = golden_maskgit.embed(before.decision.tokens_BN, before.decision.positions_BN)
        ratio_B = record.before.masked_BL.float().mean(dim=1)
        for branch, old_BTD in enumerate(before.features.features_GBTD):
            expected_BTD = golden_shortcut(old_BTD, embedded_BND, ratio_B)
            torch.testing.assert_close(ours_GBTD[branch], expected_BTD)


def test_one_backbone_call_per_full_step(
    golden_maskgit: MaskGIT, golden_shortcut: Shortcut, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    run = golden_maskgit.transformer.forward
    monkeypatch.setattr(golden_maskgit.transformer, "forward", lambda ids: calls.append(len(ids)) or run(ids))
    _decode(golden_maskgit, ShortcutFeatures(golden_maskgit, golden_shortcut), full=[0, 2])
    assert calls == [4, 4]


def test_runs_on_the_meta_device(golden_maskgit: MaskGIT, golden_shortcut: Shortcut) -> None:
    """Reading anything back to the host raises there."""
    features_fn = copy.deepcopy(ShortcutFeatures(golden_maskgit, golden_shortcut)).to("meta")
    assert isinstance(features_fn.model, MaskGIT)
    assert _decode(features_fn.model, features_fn, full=[0, 3]).tokens_BL.is_meta


def test_width_of_another_base_is_refused(golden_maskgit: MaskGIT) -> None:
    other = Shortcut(ShortcutConfig(width=32, bottleneck_width=16, num_heads=4))
    with pytest.raises(ValueError, match="for features of width 32, but maskgit has width 48"):
        ShortcutFeatures(golden_maskgit, other)
