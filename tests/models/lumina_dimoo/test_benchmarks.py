"""The benchmark scripts at toy size: equal numbers, and figures that follow from what was measured."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from swiftmask.core.decode import prepare_condition
from swiftmask.core.protocol import SamplingOptions
from swiftmask.models.lumina_dimoo import LuminaDiMOO

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def straightforward(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from imported("dimoo_straightforward", monkeypatch)


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module(name)
    del sys.modules[name]


def test_the_straightforward_step_has_our_numbers(
    straightforward: ModuleType, golden_dimoo: LuminaDiMOO
) -> None:
    plain = straightforward.Straightforward(golden_dimoo.backbone, golden_dimoo.layout)
    schedule = golden_dimoo.schedule(4, num_masked=16, options=SamplingOptions(guidance=4.0))
    condition = prepare_condition(golden_dimoo, golden_dimoo.encode(["a red circle"]), schedule)
    known_1N = torch.tensor([[3, 8, 14]])
    canvas = golden_dimoo.blank(1).write(known_1N, known_1N)
    features_GBTD = golden_dimoo.features(canvas, condition)  # type: ignore[arg-type]
    ours = golden_dimoo.tokens(features_GBTD, canvas.masked_positions(), 4.0)
    theirs_BMV = plain.code_logits(canvas, condition, 4.0)
    assert theirs_BMV.shape == (1, 13, 24)
    torch.testing.assert_close(theirs_BMV, ours.logits_BMV, rtol=1e-4, atol=1e-4)  # type: ignore[attr-defined]


def test_both_steps_decide_the_same(straightforward: ModuleType, golden_dimoo: LuminaDiMOO) -> None:
    ours, theirs = (task() for task in straightforward.step_tasks(golden_dimoo, 8))
    assert ours.positions_BN.shape == theirs.positions_BN.shape
    ours, theirs = (task() for task in straightforward.step_tasks(golden_dimoo, 8)[::-1])
    assert ours.tokens_BN.max() < 24


def test_a_line_through_the_measured_depths(straightforward: ModuleType, golden_dimoo: LuminaDiMOO) -> None:
    assert straightforward.at_depth(32, {2: 30.0, 4: 50.0}) == 330.0
    assert straightforward.at_depth(4, {2: 30.0, 4: 50.0}) == 50.0
    rows = straightforward.measure(golden_dimoo, [1, 2], num_steps=4, repeats=1)
    assert [(row.layers, row.measured) for row in rows] == [(1, True), (2, True), (32, False)]
    assert all(row.ratio == row.straightforward_ms / row.ours_ms for row in rows)
    with pytest.raises(ValueError, match=r"two depths tell what a layer costs, got \[2, 2\]"):
        straightforward.measure(golden_dimoo, [2, 2], num_steps=4, repeats=1)


def test_fewer_blocks_share_the_weights(straightforward: ModuleType, golden_dimoo: LuminaDiMOO) -> None:
    shallow = straightforward.shallower(golden_dimoo, 1)
    whole = {id(p) for p in golden_dimoo.backbone.parameters()}
    assert {id(p) for p in shallow.backbone.parameters()} < whole
    assert len(shallow.backbone.blocks) == 1
