"""Reuse and extrapolation on features whose course is known."""

import copy

import pytest
import torch
from torch import Tensor

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import FeatureFn, MaskedGenerator, SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.core.schedule import with_full_steps
from swiftmask.core.types import Canvas, Decision, Features, Record, Step, Trajectory
from swiftmask.core.unmask import by_confidence
from swiftmask.methods.caching import ExtrapolatedFeatures, ReuseFeatures
from swiftmask.methods.caching.features import lagrange_weights
from swiftmask.models.maskgit import MaskGIT

NUM_STEPS = 8
BASELINES = [
    ReuseFeatures,
    lambda model: ExtrapolatedFeatures(model, 1),
    lambda model: ExtrapolatedFeatures(model, 2),
]


class _Course:
    """A model whose features are a polynomial in the step; counts how often it runs."""

    def __init__(self, *coefficients: float, dtype: torch.dtype = torch.float32) -> None:
        self.coefficients, self.dtype, self.now, self.calls = coefficients, dtype, 0, 0

    def at(self, index: int) -> Tensor:
        pattern_GBTD = torch.linspace(-1, 1, 2 * 3 * 5 * 4).reshape(2, 3, 5, 4)
        value = sum(c * index**power for power, c in enumerate(self.coefficients))
        return (pattern_GBTD * value).to(self.dtype)

    def features(self, canvas: Canvas, condition: object) -> Tensor:
        self.calls += 1
        return self.at(self.now)


def _run(model: _Course, make: type | object, full: list[int]) -> list[Features]:
    features_fn: FeatureFn = make(model)  # type: ignore[operator]
    canvas = Canvas(torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.bool), 0)
    previous, seen = None, []
    for index in range(NUM_STEPS):
        model.now = index
        step = Step(index=index, num_masked_before=4, num_masked_after=4, full=index in full)
        seen.append(features_fn(canvas, None, step, previous))  # type: ignore[arg-type]
        decision = Decision(canvas.tokens_BL[:, :0], canvas.tokens_BL[:, :0], None)
        previous = Record(step, canvas, seen[-1], decision, canvas)
    return seen


@pytest.mark.parametrize("full", [[0, 2, 4, 6], [0, 1, 5], [0, 3, 4]])
def test_reuse_is_the_last_full_step(full: list[int]) -> None:
    model = _Course(1.0, 2.0)
    for index, features in enumerate(_run(model, ReuseFeatures, full)):
        assert torch.equal(features.features_GBTD, model.at(max(i for i in full if i <= index)))
    assert model.calls == len(full)


@pytest.mark.parametrize("full", [[0, 2, 4, 6], [0, 1, 5], [0, 3, 4], [0, 1, 2]])
@pytest.mark.parametrize("order", [1, 2])
def test_extrapolation_is_exact_on_its_own_order(order: int, full: list[int]) -> None:
    model = _Course(*(1.0, -2.0, 0.5)[: order + 1])
    for index, features in enumerate(_run(model, lambda m: ExtrapolatedFeatures(m, order), full)):
        if sum(i <= index for i in full) > order:
            torch.testing.assert_close(features.features_GBTD, model.at(index))
    assert model.calls == len(full)


def test_order_grows_with_the_full_features_there_are() -> None:
    """A parabola: first reuse, then a straight line through two full steps, then exact."""
    model = _Course(0.0, 0.0, 1.0)
    seen = [f.features_GBTD for f in _run(model, lambda m: ExtrapolatedFeatures(m, 2), [0, 2, 4])]
    assert torch.equal(seen[1], model.at(0))
    torch.testing.assert_close(seen[3], model.at(2) + (model.at(2) - model.at(0)) / 2)
    torch.testing.assert_close(seen[5], model.at(5))


def test_only_the_newest_full_features_count() -> None:
    model = _Course(0.0, 0.0, 1.0)
    seen = [f.features_GBTD for f in _run(model, lambda m: ExtrapolatedFeatures(m, 1), [0, 3, 5])]
    torch.testing.assert_close(seen[7], model.at(5) + (model.at(5) - model.at(3)))


@pytest.mark.parametrize("at", [3, 7, 11])
@pytest.mark.parametrize("indices", [(2,), (0, 3), (0, 1, 4)])
def test_weights_sum_to_one(indices: tuple[int, ...], at: int) -> None:
    assert sum(lagrange_weights(at, indices)) == pytest.approx(1)


def test_dtype_is_kept() -> None:
    seen = _run(_Course(1.0, 1.0, dtype=torch.bfloat16), lambda m: ExtrapolatedFeatures(m, 2), [0, 1])
    assert all(features.features_GBTD.dtype == torch.bfloat16 for features in seen)


@pytest.mark.parametrize("order", [0, 3])
def test_other_orders_are_refused(order: int) -> None:
    with pytest.raises(ValueError, match=f"order 1 or 2, got {order}"):
        ExtrapolatedFeatures(_Course(1.0), order)  # type: ignore[arg-type]


def test_names() -> None:
    model = _Course(1.0)
    assert [make(model).name for make in BASELINES] == ["reuse", "extrapolation-1", "extrapolation-2"]  # type: ignore[arg-type]


def _decode(model: MaskGIT, features_fn: FeatureFn, full: range | list[int], guidance: float) -> Trajectory:
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
    )


@pytest.mark.parametrize("make", BASELINES)
def test_all_steps_full_is_vanilla(make: type, golden_maskgit: MaskGIT) -> None:
    vanilla = _decode(golden_maskgit, FullFeatures(golden_maskgit), range(NUM_STEPS), 3.8)
    ours = _decode(golden_maskgit, make(golden_maskgit), range(NUM_STEPS), 3.8)
    assert torch.equal(ours.tokens_BL, vanilla.tokens_BL)
    assert torch.equal(ours.decided_at_BL, vanilla.decided_at_BL)


@pytest.mark.parametrize("guidance", [1.0, 3.8])
@pytest.mark.parametrize("make", BASELINES)
def test_runs_on_the_meta_device(make: type, guidance: float, golden_maskgit: MaskGIT) -> None:
    model: MaskedGenerator = copy.deepcopy(golden_maskgit).to("meta")
    assert isinstance(model, MaskGIT)
    assert _decode(model, make(model), [0, 3, 5], guidance).tokens_BL.is_meta
