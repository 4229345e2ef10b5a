"""Drawing, and reading schedules and canvases back from tokens and decision times."""

import pytest
import torch

from swiftmask.core.protocol import SamplingOptions
from swiftmask.methods.speed_rl.rollouts import replays, roll_out

WHAT, SEEDS, PLANNED = [0, 1, 2, 0, 1], [10, 11, 12, 13, 14], [4, 2, 4, 6, 2]
SCALED = SamplingOptions(guidance=3.0, choice_temperature=2.0)


@pytest.fixture
def plan(base):
    return lambda num_steps: base.schedule(num_steps, num_masked=16, options=SCALED)


def test_a_image_depends_on_its_seed_and_not_on_its_company(base, plan):
    together, alone = (
        roll_out(base, WHAT, SEEDS, PLANNED, plan=plan, images_per_forward=size) for size in (8, 1)
    )
    assert torch.equal(together.tokens_BL, alone.tokens_BL)
    assert torch.equal(together.decided_at_BL, alone.decided_at_BL)
    assert (together.decided_at_BL.amax(1) + 1).tolist() == PLANNED


def test_decisions_are_a_partition_with_the_counts_of_the_plan(base, plan):
    drawn = roll_out(base, WHAT, SEEDS, PLANNED, plan=plan, images_per_forward=8)
    for decided_at_L, num_steps in zip(drawn.decided_at_BL, PLANNED, strict=True):
        counts = [step.num_decided for step in plan(num_steps)]
        assert torch.bincount(decided_at_L).tolist() == counts


def test_replays_group_by_schedule_and_rebuild_every_canvas(base, plan):
    drawn = roll_out(base, WHAT, SEEDS, PLANNED, plan=plan, images_per_forward=8)
    grouped = replays(base, drawn, WHAT, PLANNED, plan=plan, images_per_forward=1)
    assert sorted(row for replay in grouped for row in replay.rows) == [0, 1, 2, 3, 4]
    grouped = replays(base, drawn, WHAT, PLANNED, plan=plan, images_per_forward=8)
    assert [replay.rows for replay in grouped] == [(1, 4), (0, 2), (3,)]
    for replay in grouped:
        assert replay.what == [WHAT[row] for row in replay.rows]
        assert replay.schedule == tuple(plan(PLANNED[replay.rows[0]]))
        for step in replay.schedule:
            canvas = replay.trajectory.canvas_at(step)
            assert canvas.masked_BL.sum(1).tolist() == [step.num_masked_before] * len(replay.rows)
            assert torch.equal(canvas.tokens_BL == base.spec.mask_id, canvas.masked_BL)
