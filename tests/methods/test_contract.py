"""What every feature function owes: exact with all steps full, no state of its own, no host sync."""

from collections.abc import Callable

import pytest
import torch

from swiftmask.core.protocol import FeatureFn, SamplingOptions
from swiftmask.methods.caching import ExtrapolatedFeatures, ReuseFeatures
from swiftmask.methods.shortcut import ShortcutFeatures
from swiftmask.pipeline import Pipeline
from swiftmask.registry import method_names

STEPS = 6
OTHER_SEAMS = {"marval", "speed_rl"}
"""Methods that plug into the token head or the weights, not into the features."""

FEATURE_METHODS = [name for name in method_names() if name not in OTHER_SEAMS]


@pytest.fixture
def feature_functions(golden_maskgit, golden_shortcut) -> dict[str, list[FeatureFn]]:
    """The feature functions of each method folder, around the tiny model."""
    return {
        "caching": [
            ReuseFeatures(golden_maskgit),
            ExtrapolatedFeatures(golden_maskgit, 1),
            ExtrapolatedFeatures(golden_maskgit, 2),
        ],
        "shortcut": [ShortcutFeatures(golden_maskgit, golden_shortcut)],
    }


@pytest.fixture
def pipelines(golden_maskgit, feature_functions) -> Callable[..., list[Pipeline]]:
    def make(method: str, full_steps: int | tuple[int, ...]) -> list[Pipeline]:
        assert method in feature_functions, f"methods/{method} needs its feature functions here"
        return [
            Pipeline(
                golden_maskgit, features_fn=fn, full_steps=full_steps, sampling=SamplingOptions(guidance=3.0)
            )
            for fn in feature_functions[method]
        ]

    return make


@pytest.mark.parametrize("method", FEATURE_METHODS)
def test_all_steps_full_is_the_full_model_token_for_token(method, pipelines, golden_maskgit):
    vanilla = Pipeline(golden_maskgit, sampling=SamplingOptions(guidance=3.0))
    expected = vanilla.generate([0, 1, 2], steps=STEPS).trajectory
    for pipeline in pipelines(method, STEPS):
        actual = pipeline.generate([0, 1, 2], steps=STEPS)
        assert torch.equal(actual.trajectory.tokens_BL, expected.tokens_BL)
        assert torch.equal(actual.trajectory.decided_at_BL, expected.decided_at_BL)
        assert actual.cost.calls["backbone"] == STEPS


@pytest.mark.parametrize("method", FEATURE_METHODS)
def test_two_decodes_with_one_feature_function_do_not_meet(method, pipelines):
    for pipeline in pipelines(method, (0, 2)):
        first = pipeline.generate([0], seeds=[1], steps=STEPS).trajectory.tokens_BL
        pipeline.generate([2], seeds=[9], steps=4)
        assert torch.equal(pipeline.generate([0], seeds=[1], steps=STEPS).trajectory.tokens_BL, first)


@pytest.mark.parametrize("method", FEATURE_METHODS)
def test_approximated_steps_cost_less_and_read_nothing_back(method, pipelines, golden_maskgit):
    vanilla = Pipeline(golden_maskgit, sampling=SamplingOptions(guidance=3.0))
    for pipeline in pipelines(method, (0, 3)):
        schedule = pipeline.schedule(STEPS)
        calls = pipeline.calls(schedule)
        assert calls["backbone"] == 2
        assert calls[pipeline.features_fn.name] == STEPS - 2
        assert pipeline.flops(schedule) < vanilla.flops(vanilla.schedule(STEPS))
