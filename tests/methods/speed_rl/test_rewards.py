"""From scores to advantages: aggregation, the speed reward, baselines and scales."""

import pytest
import torch

from swiftmask.methods.speed_rl import SpeedConfig
from swiftmask.methods.speed_rl.advantages import BASELINES, SCALES, advantages
from swiftmask.methods.speed_rl.rewards import (
    AGGREGATIONS,
    SPEED_FORMS,
    SPEED_SHAPES,
    combine,
    speed_reward,
    weighted_sum,
    weighted_sum_of_z_scores,
)

REWARDS_PK = torch.tensor([[0.25, 0.27, 0.30, 0.22]])
EXPECTED_PK = torch.tensor([[-0.29616, 0.29616, 1.18466, -1.18466]])
FOUR_PK = torch.tensor([[4, 4, 4, 4]])
MIXED_PK = torch.tensor([[8, 8, 24, 24]])


def plain(rewards_PK, steps_PK=FOUR_PK, *, baseline="group", scale="group", clip=5.0):
    return advantages(rewards_PK, steps_PK, baseline=BASELINES[baseline], scale=SCALES[scale], clip=clip)


def test_advantages_worked_out_by_hand():
    torch.testing.assert_close(plain(REWARDS_PK), EXPECTED_PK, rtol=0, atol=1e-4)
    assert REWARDS_PK.std().item() == pytest.approx(0.0336650, abs=1e-6)


def test_scales():
    rewards_PK = torch.cat([REWARDS_PK, 10 * REWARDS_PK])
    steps_PK = FOUR_PK.expand(2, -1)
    centred_PK = rewards_PK - rewards_PK.mean(1, keepdim=True)
    torch.testing.assert_close(plain(rewards_PK, steps_PK, scale="none"), centred_PK)
    by_batch_PK = centred_PK / (rewards_PK.std() + 1e-4)
    torch.testing.assert_close(plain(rewards_PK, steps_PK, scale="batch"), by_batch_PK)
    by_group_PK = plain(rewards_PK, steps_PK)
    torch.testing.assert_close(by_group_PK[0], by_group_PK[1], rtol=5e-3, atol=0)


def test_equal_rewards_and_outliers_stay_finite():
    assert torch.equal(plain(torch.full((1, 4), 0.3)), torch.zeros(1, 4))
    outlier_PK = torch.zeros(1, 100)
    outlier_PK[0, 0] = 1.0
    assert plain(outlier_PK, torch.ones(1, 100)).max() == 5.0


def test_an_additive_speed_reward_cancels_where_a_group_has_one_step_count():
    speed = SpeedConfig(weight=3.0)
    scores_MPK = REWARDS_PK[None]
    for name, aggregate in AGGREGATIONS.items():
        with_speed, without = (
            combine(scores_MPK, torch.ones(1), steps_PK, aggregate=aggregate, speed=speed).total_PK
            for steps_PK in (torch.full((1, 4), 8), torch.full((1, 4), 24))
        )
        assert (with_speed - without).abs().min() > 1, name
        torch.testing.assert_close(plain(with_speed), plain(without), rtol=0, atol=1e-4)


def test_with_mixed_step_counts_it_does_not_unless_the_baseline_takes_it_out():
    speed = SpeedConfig(weight=3.0)
    total_PK = SPEED_FORMS["additive"](REWARDS_PK, MIXED_PK, speed)
    assert (plain(total_PK, MIXED_PK) - EXPECTED_PK).abs().max() > 0.5
    within_PK = plain(total_PK, MIXED_PK, baseline="group_and_steps", scale="none")
    torch.testing.assert_close(within_PK, torch.tensor([[-0.01, 0.01, 0.04, -0.04]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("baseline", list(BASELINES))
def test_advantages_are_centred_in_every_group(baseline):
    rewards_PK = torch.rand(5, 8)
    steps_PK = torch.randint(1, 4, (5, 8))
    sums_P = plain(rewards_PK, steps_PK, baseline=baseline).sum(dim=1)
    torch.testing.assert_close(sums_P, torch.zeros(5), rtol=0, atol=1e-4)


def test_normalising_first_keeps_a_judge_of_small_units_from_drowning():
    small_PK, large_PK = 0.01 * torch.rand(3, 8), 100 * torch.rand(3, 8)
    scores_MPK = torch.stack([small_PK, large_PK])
    weights_M = torch.ones(2)
    summed_PK = weighted_sum(scores_MPK, weights_M)
    torch.testing.assert_close(summed_PK, small_PK + large_PK)
    both_PK = weighted_sum_of_z_scores(scores_MPK, weights_M)
    for part_PK in (small_PK, large_PK):
        z_PK = (part_PK - part_PK.mean(1, keepdim=True)) / (part_PK.std(1, keepdim=True) + 1e-4)
        both_PK = both_PK - z_PK
    torch.testing.assert_close(both_PK, torch.zeros(3, 8), rtol=0, atol=1e-4)


@pytest.mark.parametrize("aggregate", AGGREGATIONS.values())
def test_a_score_that_does_not_apply_counts_for_nothing(aggregate):
    scores_MPK = torch.tensor([[[0.1, 0.2, 0.6]], [[1.0, torch.nan, torch.nan]]])
    weights_M = torch.tensor([1.0, 2.0])
    alone_PK = aggregate(scores_MPK[:1], weights_M[:1])
    both_PK = aggregate(scores_MPK, weights_M)
    torch.testing.assert_close(both_PK[:, 1:], alone_PK[:, 1:])
    assert both_PK.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [1.0, 0.75, 0.5, 0.0]),
        ("inverse", [1.0, 2 / 3, 0.5, 1 / 3]),
        ("log", [1.0, 1 - 0.405465 / 1.098612, 1 - 0.693147 / 1.098612, 0.0]),
        ("hinge", [1.0, 1.0, 1.0, 0.0]),
    ],
)
def test_speed_shapes(shape, expected):
    config = SpeedConfig(shape=shape, fastest=8, reference=16, slowest=24)
    steps_PK = torch.tensor([[8, 12, 16, 24]])
    torch.testing.assert_close(speed_reward(steps_PK, config), torch.tensor([expected]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", list(SPEED_SHAPES))
def test_speed_rewards_fall_and_stay_in_the_unit_interval(shape):
    config = SpeedConfig(shape=shape, fastest=4, reference=10, slowest=20)
    speed_1K = speed_reward(torch.arange(1, 41)[None], config)[0]
    assert speed_1K.min() >= 0
    assert speed_1K[:4].tolist() == [1.0] * 4
    assert (speed_1K.diff() <= 0).all()
    assert speed_1K[19] < speed_1K[9]


def test_speed_forms():
    quality_PK = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    config = SpeedConfig(weight=0.5, fastest=8, reference=16, slowest=24)
    added_PK = SPEED_FORMS["additive"](quality_PK, MIXED_PK, config)
    torch.testing.assert_close(added_PK, torch.tensor([[0.6, 0.9, 0.2, 0.3]]))
    gated_PK = SPEED_FORMS["gated"](quality_PK, MIXED_PK, config)
    torch.testing.assert_close(gated_PK, torch.tensor([[0.1, 0.9, 0.2, 0.3]]))
    factors_PK = SPEED_FORMS["multiplicative"](quality_PK, MIXED_PK, config) / quality_PK
    root = [2**0.5, 2**0.5, (2 / 3) ** 0.5, (2 / 3) ** 0.5]
    torch.testing.assert_close(factors_PK, torch.tensor([root]))


def test_what_is_filtered_by_knows_nothing_of_speed():
    rewards = combine(
        REWARDS_PK[None], torch.ones(1), MIXED_PK, aggregate=weighted_sum, speed=SpeedConfig(weight=9.0)
    )
    assert torch.equal(rewards.raw_PK, REWARDS_PK)
    assert (rewards.total_PK - rewards.raw_PK).max() == 9.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "free"}, "speed.form must be one of additive, multiplicative, gated, got 'free'"),
        ({"shape": "cubic"}, "speed.shape must be one of linear, inverse, log, hinge, got 'cubic'"),
        ({"fastest": 24, "slowest": 8}, "fastest <= speed.reference < speed.slowest, got 24, 16 and 8"),
    ],
)
def test_impossible_speed_rewards_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SpeedConfig(**settings)
