"""Drift of predicted features along a run of the full model."""

from dataclasses import replace

import pytest
import torch

from swiftmask.core.protocol import SamplingOptions
from swiftmask.evaluate.tuning.feature_drift import (
    Recording,
    drift,
    feature_distance,
    record_decode,
    token_distance,
)
from swiftmask.methods.caching import ExtrapolatedFeatures, ReuseFeatures
from swiftmask.methods.shortcut import Shortcut, ShortcutFeatures
from swiftmask.models.mar import MAR
from swiftmask.models.maskgit import MaskGIT
from swiftmask.pipeline import Pipeline

STEPS = 5


@pytest.fixture(scope="module")
def recording(golden_maskgit: MaskGIT) -> Recording:
    schedule = golden_maskgit.schedule(STEPS, num_masked=16, options=SamplingOptions(guidance=3.0))
    return record_decode(golden_maskgit, [0, 1, 2], [7, 8, 9], schedule)


def test_the_recording_is_a_run_of_the_full_model(golden_maskgit: MaskGIT, recording: Recording) -> None:
    pipeline = Pipeline(golden_maskgit, sampling=SamplingOptions(guidance=3.0), steps=STEPS)
    known = replace(pipeline, _flops={tuple(pipeline.schedule()): 1})  # counting them is another test's work
    drawn = known.generate([0, 1, 2], seeds=[7, 8, 9])
    assert torch.equal(recording.records[-1].after.tokens_BL, drawn.trajectory.tokens_BL)
    assert [record.step.index for record in recording.records] == list(range(STEPS))


def test_reuse_drifts_by_how_much_features_change(golden_maskgit: MaskGIT, recording: Recording) -> None:
    drift_SS = drift(ReuseFeatures(golden_maskgit), recording, feature_distance)
    features = [record.features.features_GBTD.double() for record in recording.records]
    for start in range(STEPS):
        for step in range(STEPS):
            expected = 0.0
            if step > start:
                change = (features[start] - features[step]).square().sum() / features[step].square().sum()
                expected = float(change)
            assert float(drift_SS[start, step]) == pytest.approx(expected, rel=1e-4)


def test_a_shortcut_chains_from_every_full_step(
    golden_maskgit: MaskGIT, golden_shortcut: Shortcut, recording: Recording
) -> None:
    features_fn = ShortcutFeatures(golden_maskgit, golden_shortcut)
    drift_SS = drift(features_fn, recording, feature_distance)
    second, third = recording.records[1:3]
    predicted = features_fn(
        second.before, recording.condition, replace(second.step, full=False), recording.records[0]
    )
    again = features_fn(
        third.before,
        recording.condition,
        replace(third.step, full=False),
        replace(second, features=predicted),
    )
    true_GBTD = third.features.features_GBTD
    error = (again.features_GBTD - true_GBTD).square().sum() / true_GBTD.square().sum()
    assert float(drift_SS[0, 2]) == pytest.approx(float(error), rel=1e-4)
    assert float(drift_SS.tril().abs().sum()) == 0
    assert (drift_SS.triu(1) > 0).sum() == STEPS * (STEPS - 1) / 2


def test_token_drift_is_the_divergence_of_what_is_decided(
    golden_maskgit: MaskGIT, recording: Recording
) -> None:
    drift_SS = drift(ReuseFeatures(golden_maskgit), recording, token_distance)
    first, last = recording.records[0], recording.records[3]
    positions_BM, step = last.before.masked_positions(), last.step
    true, reused = (
        golden_maskgit.tokens(record.features.features_GBTD, positions_BM, step.guidance).logits_BMV.double()
        for record in (last, first)
    )
    apart = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=true / step.temperature),
        torch.distributions.Categorical(logits=reused / step.temperature),
    )
    assert float(drift_SS[0, 3]) == pytest.approx(float(apart.mean()) * step.num_decided, rel=1e-3)
    assert (drift_SS.triu(1) > 0).sum() == STEPS * (STEPS - 1) / 2


def test_real_valued_tokens_have_no_token_drift(golden_mar: MAR) -> None:
    schedule = golden_mar.schedule(2, num_masked=16, options=SamplingOptions())
    recording = record_decode(golden_mar, [0], [0], schedule)
    reuse = ReuseFeatures(golden_mar)
    assert float(drift(reuse, recording, feature_distance)[0, 1]) > 0
    with pytest.raises(ValueError, match="mar generates no codes"):
        drift(reuse, recording, token_distance)


def test_functions_that_look_further_back_are_refused(golden_maskgit: MaskGIT, recording: Recording) -> None:
    with pytest.raises(ValueError, match="extrapolation-1 looks further back"):
        drift(ExtrapolatedFeatures(golden_maskgit, 1), recording, feature_distance)
