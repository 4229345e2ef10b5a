"""ML-Cache on the golden backbone: which steps, which rows, and that the rest stays as it was."""

import copy
from typing import Any

import pytest
import torch

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import FeatureFn, SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.core.schedule import with_full_steps
from swiftmask.core.types import Record, Trajectory
from swiftmask.methods.caching import (
    MLCacheFeatures,
    lowest_peaks,
    ml_cache_full_steps,
    refreshed_first,
)
from swiftmask.methods.caching.ml_cache import num_recomputed
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.lumina_dimoo.network import LayerCache
from swiftmask.models.maskgit import MaskGIT

PROMPTS = ["a red circle on a blue background", "circle"]
NUM_STEPS = 6


def run(
    model: LuminaDiMOO,
    features_fn: FeatureFn,
    full: list[int],
    *,
    prompts: list[str] = PROMPTS,
    on_step: list[Record] | None = None,
) -> Trajectory:
    schedule = model.schedule(NUM_STEPS, num_masked=16, options=SamplingOptions(guidance=4.0))
    schedule = with_full_steps(schedule, full)
    noise = SeededNoise([3, 4][: len(prompts)], 16, model.device)
    canvas = model.blank(len(prompts))
    return decode(
        model,
        prepare_condition(model, model.encode(prompts), schedule),
        schedule,
        noise,
        canvas=canvas,
        features_fn=features_fn,
        unmask=model.unmask_rule(canvas, noise),
        on_step=None if on_step is None else on_step.append,
    )


@pytest.mark.parametrize(
    ("num_steps", "warmup", "interval", "count"),
    [(64, 0.3, 5, 28), (64, 0.3, 3, 34), (64, 0.0, 5, 13), (32, 0.3, 5, 14)],
)
def test_how_many_steps_are_full(num_steps: int, warmup: float, interval: int, count: int) -> None:
    full = ml_cache_full_steps(num_steps, warmup_ratio=warmup, refresh_interval=interval)
    assert len(full) == count
    assert full[0] == 0


def test_which_steps_are_full() -> None:
    assert ml_cache_full_steps(64) == [*range(20), 24, 29, 34, 39, 44, 49, 54, 59]
    with pytest.raises(ValueError, match="refresh_interval must be at least 1"):
        ml_cache_full_steps(8, refresh_interval=0)


@pytest.mark.parametrize("ratio", [0.9, 0.6, 0.5, 0.0])
@pytest.mark.parametrize("length", [26, 29, 4244])
def test_as_many_as_lie_below_the_quantile(length: int, ratio: float) -> None:
    peaks = torch.randperm(length).float()
    threshold = torch.quantile(peaks, torch.tensor(1 - ratio, dtype=torch.float32))
    assert num_recomputed(length, ratio) == int((peaks <= threshold).sum())


def test_recomputing_everything_is_the_full_model(golden_dimoo: LuminaDiMOO) -> None:
    vanilla = run(golden_dimoo, FullFeatures(golden_dimoo), list(range(NUM_STEPS)))
    ours = run(golden_dimoo, MLCacheFeatures(golden_dimoo, cache_ratio=0.0), [0])
    assert torch.equal(ours.tokens_BL, vanilla.tokens_BL)
    assert torch.equal(ours.decided_at_BL, vanilla.decided_at_BL)


def test_all_steps_full_is_vanilla(golden_dimoo: LuminaDiMOO) -> None:
    everything = list(range(NUM_STEPS))
    vanilla = run(golden_dimoo, FullFeatures(golden_dimoo), everything)
    assert torch.equal(
        run(golden_dimoo, MLCacheFeatures(golden_dimoo), everything).tokens_BL, vanilla.tokens_BL
    )


def test_the_columns_with_the_lowest_peaks_are_recomputed_and_no_others(
    golden_dimoo: LuminaDiMOO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each branch of each image picks its own, never padding, and all others stay as they were."""
    asked: list[torch.Tensor] = []
    recompute = golden_dimoo.recompute

    def spy(canvas, condition, columns_XK, cache):
        asked.append(columns_XK)
        return recompute(canvas, condition, columns_XK, cache)

    monkeypatch.setattr(golden_dimoo, "recompute", spy)
    records: list[Record] = []
    run(golden_dimoo, MLCacheFeatures(golden_dimoo, cache_ratio=0.5), [0], on_step=records)
    lengths = golden_dimoo.sequence_lengths(golden_dimoo.with_null(golden_dimoo.encode(PROMPTS)))
    for before, record, columns_XK in zip(records, records[1:], asked, strict=False):
        old_XTD, new_XTD = (r.features.features_GBTD.flatten(0, 1) for r in (before, record))
        peaks_XT = golden_dimoo.peak_logits(old_XTD)
        for x, length in enumerate(lengths):
            first = old_XTD.shape[1] - length
            lowest_K = peaks_XT[x, first:].topk(num_recomputed(length, 0.5), largest=False).indices + first
            assert set(columns_XK[x].tolist()) == set(lowest_K.tolist())
            others_T = torch.ones(old_XTD.shape[1], dtype=torch.bool).scatter(0, lowest_K, False)
            assert torch.equal(old_XTD[x, others_T], new_XTD[x, others_T])
    first_GBTD, last_GBTD = (r.features.features_GBTD for r in (records[0], records[-1]))
    assert not torch.equal(first_GBTD, last_GBTD)


def test_a_cache_is_a_value(golden_dimoo: LuminaDiMOO) -> None:
    """A step taken twice from one record is the same step, and leaves the record's cache as it was."""
    records: list[Record] = []
    features_fn = MLCacheFeatures(golden_dimoo, cache_ratio=0.5)
    run(golden_dimoo, features_fn, [0], on_step=records)
    condition = golden_dimoo.with_null(golden_dimoo.encode(PROMPTS))
    for before, record in zip(records, records[1:], strict=False):
        carry: Any = before.features.carry
        cache = carry.cache
        assert isinstance(cache, LayerCache)
        kept = [part.clone() for part in (*cache.keys, *cache.values)]
        again = features_fn(record.before, condition, record.step, before)
        assert torch.equal(again.features_GBTD, record.features.features_GBTD)
        assert all(map(torch.equal, kept, (*cache.keys, *cache.values)))


def test_fresh_tokens_can_come_first(golden_dimoo: LuminaDiMOO) -> None:
    records: list[Record] = []
    features_fn = MLCacheFeatures(golden_dimoo, cache_ratio=0.9, rule=refreshed_first)
    run(golden_dimoo, features_fn, [0], on_step=records)
    for before, record in zip(records, records[1:], strict=False):
        old_GBTD, new_GBTD = before.features.features_GBTD, record.features.features_GBTD
        columns_BN = golden_dimoo.columns(before.decision.positions_BN, old_GBTD.shape[2])
        changed_GBT = (old_GBTD != new_GBTD).any(-1)
        assert changed_GBT.gather(2, columns_BN.expand(2, -1, -1)).all()


def test_rules_rank_columns() -> None:
    peaks_XT, decided_XN = torch.tensor([[3.0, 1.0, 2.0, float("inf")]]), torch.tensor([[0]])
    assert lowest_peaks(peaks_XT, decided_XN).order_XT.argsort(dim=1).tolist() == [[1, 2, 0, 3]]
    assert refreshed_first(peaks_XT, decided_XN).order_XT.argsort(dim=1).tolist() == [[0, 1, 2, 3]]
    assert refreshed_first(peaks_XT, decided_XN).at_least == 1


@pytest.mark.parametrize("rule", [lowest_peaks, refreshed_first])
def test_a_image_does_not_depend_on_its_batch(rule, golden_dimoo: LuminaDiMOO) -> None:
    features_fn = MLCacheFeatures(golden_dimoo, cache_ratio=0.7, rule=rule)
    together = run(golden_dimoo, features_fn, [0, 3]).tokens_BL
    for i, prompt in enumerate(PROMPTS):
        schedule_seed = [3, 4][i]
        alone = run_alone(golden_dimoo, features_fn, prompt, schedule_seed)
        assert torch.equal(alone.tokens_BL[0], together[i])


def run_alone(model: LuminaDiMOO, features_fn: FeatureFn, prompt: str, seed: int) -> Trajectory:
    schedule = model.schedule(NUM_STEPS, num_masked=16, options=SamplingOptions(guidance=4.0))
    schedule = with_full_steps(schedule, [0, 3])
    noise, canvas = SeededNoise([seed], 16), model.blank(1)
    condition = prepare_condition(model, model.encode([prompt]), schedule)
    unmask = model.unmask_rule(canvas, noise)
    return decode(model, condition, schedule, noise, canvas=canvas, features_fn=features_fn, unmask=unmask)


def test_runs_on_the_meta_device(golden_dimoo: LuminaDiMOO) -> None:
    model = copy.deepcopy(golden_dimoo).to("meta")
    assert run(model, MLCacheFeatures(model), [0, 3]).tokens_BL.is_meta


def test_impossible_settings_are_refused(golden_dimoo: LuminaDiMOO, golden_maskgit: MaskGIT) -> None:
    with pytest.raises(ValueError, match=r"at least 0 and below 1, got 1\.0"):
        MLCacheFeatures(golden_dimoo, cache_ratio=1.0)
    with pytest.raises(ValueError, match="MaskGIT cannot recompute single columns"):
        MLCacheFeatures(golden_maskgit)  # type: ignore[arg-type]
