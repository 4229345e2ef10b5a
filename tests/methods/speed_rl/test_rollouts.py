"""Drawing, and reading schedules and canvases back from tokens and decision times."""

import pytest
import torch

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.schedule import meissonic_schedule
from swiftmask.methods.speed_rl.rollouts import AsConfident, as_planned, followed, replays, roll_out

WHAT, SEEDS, PLANNED = [0, 1, 2, 0, 1], [10, 11, 12, 13, 14], [4, 2, 4, 6, 2]
SCALED = SamplingOptions(guidance=3.0, choice_temperature=2.0)


@pytest.fixture
def plan(base):
    return lambda num_steps: base.schedule(num_steps, num_masked=16, options=SCALED)


def test_a_picture_depends_on_its_seed_and_not_on_its_company(base, plan):
    together, alone = (
        roll_out(base, WHAT, SEEDS, PLANNED, draw=as_planned, plan=plan, images_per_forward=size)
        for size in (8, 1)
    )
    assert torch.equal(together.tokens_BL, alone.tokens_BL)
    assert torch.equal(together.decided_at_BL, alone.decided_at_BL)
    assert (together.decided_at_BL.amax(1) + 1).tolist() == PLANNED


def test_decisions_are_a_partition_with_the_counts_of_the_plan(base, plan):
    drawn = roll_out(base, WHAT, SEEDS, PLANNED, draw=as_planned, plan=plan, images_per_forward=8)
    for decided_at_L, num_steps in zip(drawn.decided_at_BL, PLANNED, strict=True):
        counts = [step.num_decided for step in plan(num_steps)]
        assert torch.bincount(decided_at_L).tolist() == counts


@pytest.mark.parametrize("num_steps", [4, 6, 8, 16])
def test_the_counts_of_a_plan_give_the_plan_back(num_steps):
    plan = meissonic_schedule(1024, num_steps)
    assert followed(plan, [step.num_decided for step in plan]) == tuple(plan)


def test_other_counts_take_guidance_from_the_nearest_place_of_the_plan(plan):
    schedule = followed(plan(4), [10, 1, 5])
    assert [(s.index, s.num_masked_before, s.num_masked_after) for s in schedule] == [
        (0, 16, 6),
        (1, 6, 5),
        (2, 5, 0),
    ]
    nearest = [min(plan(4), key=lambda s: abs(s.num_masked_before - left)) for left in (16, 6, 5)]
    assert [s.guidance for s in schedule] == [s.guidance for s in nearest]


def test_replays_group_by_schedule_and_rebuild_every_canvas(base, plan):
    drawn = roll_out(base, WHAT, SEEDS, PLANNED, draw=as_planned, plan=plan, images_per_forward=8)
    grouped = replays(base, drawn, WHAT, PLANNED, plan=plan, images_per_forward=1)
    assert sorted(row for replay in grouped for row in replay.rows) == [0, 1, 2, 3, 4]
    grouped = replays(base, drawn, WHAT, PLANNED, plan=plan, images_per_forward=8)
    assert [replay.rows for replay in grouped] == [(1, 4), (0, 2), (3,)]
    for replay in grouped:
        assert replay.what == [WHAT[row] for row in replay.rows]
        for step in replay.schedule:
            canvas = replay.trajectory.canvas_at(step)
            assert canvas.masked_BL.sum(1).tolist() == [step.num_masked_before] * len(replay.rows)
            assert torch.equal(canvas.tokens_BL == base.spec.mask_id, canvas.masked_BL)


def draw_as_confident(base, plan, threshold: float, fewest: int = 1, most: int = 16):
    rule = AsConfident(threshold, fewest, most)
    return roll_out(base, WHAT, SEEDS, [8] * 5, draw=rule, plan=plan, images_per_forward=8).decided_at_BL


def test_confidence_decides_within_its_bounds(base, plan):
    decided_at_BL = draw_as_confident(base, plan, 0.2, fewest=2, most=6)
    for decided_at_L in decided_at_BL:
        counts = torch.bincount(decided_at_L).tolist()
        assert sum(counts) == 16
        assert max(counts) <= 6
        assert min(counts[:-1]) >= 2


def test_a_lower_threshold_takes_fewer_steps(base, plan):
    assert (draw_as_confident(base, plan, 1.0).amax(1) + 1).tolist() == [16] * 5
    assert (draw_as_confident(base, plan, 1e-6).amax(1) + 1).tolist() == [1] * 5
    between = (draw_as_confident(base, plan, 0.2).amax(1) + 1).float().mean()
    assert 1 < between < 16


def test_pictures_drawn_by_confidence_replay(base, plan):
    drawn = roll_out(
        base, WHAT, SEEDS, [8] * 5, draw=AsConfident(0.2, 1, 16), plan=plan, images_per_forward=8
    )
    for replay in replays(base, drawn, WHAT, [8] * 5, plan=plan, images_per_forward=8):
        assert replay.schedule[0].num_masked_before == 16
        assert replay.schedule[-1].num_masked_after == 0
        for step in replay.schedule:
            assert replay.trajectory.decided_in(step).shape == (len(replay.rows), step.num_decided)
