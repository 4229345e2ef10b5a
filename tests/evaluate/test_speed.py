"""Timing: what is timed is the decode loop's own step, and operations are counted where attention counts."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from swiftmask.core.decode import FullFeatures
from swiftmask.core.protocol import FeatureFn
from swiftmask.core.types import Canvas, Features, Record, Step
from swiftmask.evaluate.memory import peak_memory_bytes, reset_peak_memory
from swiftmask.evaluate.speed import (
    StepKind,
    Timing,
    matmul_task,
    measure_steps,
    middle,
    num_rounds,
    step_task,
    time_in_turn,
)
from swiftmask.methods.shortcut import Shortcut, ShortcutFeatures
from swiftmask.models.mar import MAR
from swiftmask.models.maskgit import MaskGIT
from swiftmask.pipeline import Pipeline

CPU = torch.device("cpu")


def test_tasks_take_turns_and_warm_up_does_not_count() -> None:
    order: list[str] = []
    tasks = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    timings = time_in_turn(tasks, CPU, repeats=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert len(timings["a"].seconds) == 3


def test_median_and_quartiles() -> None:
    timing = Timing((0.001, 0.002, 0.003, 0.004, 0.1))
    assert timing.median_ms == 3.0
    assert timing.iqr_ms == 2.0
    assert timing.best_s == 0.001
    assert Timing((1.0,)).iqr_ms == 0.0


def test_matmul_operations() -> None:
    task, flops = matmul_task(16, CPU, torch.float32)
    with FlopCounterMode(display=False) as counter:
        task()
    assert counter.get_total_flops() == flops == 2 * 16**3


def test_fused_attention_reads_zero_operations_and_the_math_backend_does_not() -> None:
    """Why operations are counted under the math backend: the fused CPU kernel is invisible to the counter."""
    query = torch.randn(1, 2, 32, 16)
    counts = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with torch.no_grad(), sdpa_kernel(backend), FlopCounterMode(display=False) as counter:
            F.scaled_dot_product_attention(query, query, query)
        counts.append(counter.get_total_flops())
    assert counts == [0, 2 * 2 * 2 * 32 * 32 * 16]


class _Recorded:
    """A feature function that remembers what it was asked."""

    name, settings = "recorded", ()

    def __init__(self, model: MaskGIT) -> None:
        self.model = model
        self.asked: list[tuple[Canvas, Step, Record | None]] = []

    def __call__(self, canvas: Canvas, condition: object, step: Step, previous: Record | None) -> Features:
        self.asked.append((canvas, step, previous))
        return Features(self.model.features(canvas, condition))  # type: ignore[arg-type]


def kind_of(model: Any, features_fn: FeatureFn, *, steps: int, flops: int, accelerated: bool) -> StepKind:
    pipeline = Pipeline(model, features_fn=features_fn, full_steps=2 if accelerated else None)
    return StepKind(
        name="fast" if accelerated else "full",
        model=model,
        features_fn=features_fn,
        schedule=pipeline.schedule(steps),
        flops=flops,
        accelerated=accelerated,
    )


def test_a_timed_step_is_a_step_in_the_middle_of_a_decode(golden_maskgit: MaskGIT) -> None:
    features_fn = _Recorded(golden_maskgit)
    kind = kind_of(golden_maskgit, features_fn, steps=4, flops=1, accelerated=True)
    task = step_task(kind, 3)
    with torch.inference_mode():
        task()
        task()
    (_, before, nothing), (canvas, step, previous), again = features_fn.asked
    assert nothing is None
    assert before.full
    assert not step.full
    assert previous is not None
    assert previous.step.index == 1
    assert previous.features.features_GBTD.shape[:2] == (2, 3), "both guidance branches, whole batch"
    assert torch.equal(previous.after.masked_BL, canvas.masked_BL)
    assert canvas.masked_BL.sum(1).tolist() == [kind.schedule[2].num_masked_before] * 3
    assert again[0] is canvas


def test_continuous_tokens_are_timed_too(golden_mar: MAR) -> None:
    model: Any = golden_mar
    kind = kind_of(model, FullFeatures(model), steps=4, flops=1, accelerated=False)
    with torch.inference_mode():
        record = step_task(kind, 2)()
    assert isinstance(record, Record)
    assert (record.step.index, record.step.full) == (2, True)
    assert record.after.tokens_BL.isfinite().all()


def test_the_costs_add_up(golden_maskgit: MaskGIT, golden_shortcut: Shortcut) -> None:
    model: Any = golden_maskgit
    full = kind_of(model, FullFeatures(model), steps=6, flops=1000, accelerated=False)
    features_fn = ShortcutFeatures(model, golden_shortcut)
    fast = kind_of(model, features_fn, steps=6, flops=100, accelerated=True)
    rounds: list[None] = []
    peak, costs = measure_steps(
        [full, fast],
        dtype=torch.float32,
        batch=3,
        repeats=2,
        matmul_sizes=(32,),
        on_round=lambda: rounds.append(None),
    )
    assert len(rounds) == num_rounds(2)
    assert [cost.kind for cost in costs] == ["full", "fast"]
    assert [cost.full_steps for cost in costs] == [6, 2]
    assert [cost.flops for cost in costs] == [3000, 300]
    assert costs[1].speedup == costs[0].ms / costs[1].ms
    assert costs[0].decode_share == 1
    assert costs[1].decode_share == pytest.approx((2 + 4 / costs[1].speedup) / 6)
    assert costs[1].peak_share * peak * costs[1].ms / 1000 == pytest.approx(300)
    assert all(cost.peak_memory_bytes > 0 for cost in costs)


def test_a_step_needs_one_before_it(golden_maskgit: MaskGIT) -> None:
    schedule = Pipeline(golden_maskgit).schedule(4)[:1]
    with pytest.raises(ValueError, match="expected at least 2 steps, got 1"):
        middle(schedule)


def test_peak_memory_sees_a_large_allocation() -> None:
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert peak_memory_bytes(CPU) >= before
    assert block.sum() > 0
