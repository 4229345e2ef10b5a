"""From scores to advantages, and the speed reward."""

import pytest
import torch

from swiftmask.methods.speed_rl.rewards import (
    advantages,
    combine,
    speed_reward,
    weighted_sum,
    weighted_sum_of_z_scores,
)

REWARDS_PK = torch.tensor([[0.25, 0.27, 0.30, 0.22]])
EXPECTED_PK = torch.tensor([[-0.29616, 0.29616, 1.18466, -1.18466]])
MIXED_PK = torch.tensor([[8, 8, 24, 24]])
COUNTS = (8, 12, 16, 24)


def plain(rewards_PK):
    return advantages(rewards_PK, clip=5.0)


def combined(steps_PK, weight):
    speed_PK = speed_reward(steps_PK, COUNTS)
    return combine(REWARDS_PK[None], torch.ones(1), speed_PK, speed_weight=weight)


def test_advantages_worked_out_by_hand():
    torch.testing.assert_close(plain(REWARDS_PK), EXPECTED_PK, rtol=0, atol=1e-4)
    assert REWARDS_PK.std().item() == pytest.approx(0.0336650, abs=1e-6)


def test_units_do_not_matter():
    by_group_PK = plain(torch.cat([REWARDS_PK, 10 * REWARDS_PK]))
    torch.testing.assert_close(by_group_PK[0], by_group_PK[1], rtol=5e-3, atol=0)


def test_equal_rewards_and_outliers_stay_finite():
    assert torch.equal(plain(torch.full((1, 4), 0.3)), torch.zeros(1, 4))
    outlier_PK = torch.zeros(1, 100)
    outlier_PK[0, 0] = 1.0
    assert plain(outlier_PK).max() == 5.0


def test_a_speed_reward_cancels_where_a_group_has_one_step_count():
    fast, slow = (combined(torch.full((1, 4), n), 3.0).total_PK for n in (8, 24))
    assert (fast - slow).abs().min() > 1
    torch.testing.assert_close(plain(fast), plain(slow), rtol=0, atol=1e-4)


def test_with_mixed_step_counts_it_does_not():
    assert (plain(combined(MIXED_PK, 3.0).total_PK) - EXPECTED_PK).abs().max() > 0.5


def test_advantages_are_centred_in_every_group():
    sums_P = plain(torch.rand(5, 8)).sum(dim=1)
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


@pytest.mark.parametrize("aggregate", [weighted_sum, weighted_sum_of_z_scores])
def test_a_score_that_does_not_apply_counts_for_nothing(aggregate):
    scores_MPK = torch.tensor([[[0.1, 0.2, 0.6]], [[1.0, torch.nan, torch.nan]]])
    weights_M = torch.tensor([1.0, 2.0])
    alone_PK = aggregate(scores_MPK[:1], weights_M[:1])
    both_PK = aggregate(scores_MPK, weights_M)
    torch.testing.assert_close(both_PK[:, 1:], alone_PK[:, 1:])
    assert both_PK.isfinite().all()


def test_the_speed_reward_falls_from_the_fewest_steps_to_the_most():
    speed_PK = speed_reward(torch.tensor([[4, 8, 12, 16, 24, 30]]), COUNTS)
    torch.testing.assert_close(speed_PK, torch.tensor([[1.0, 1.0, 0.75, 0.5, 0.0, 0.0]]))
    assert speed_reward(torch.tensor([[5, 5]]), (5,)).tolist() == [[0.0, 0.0]]


def test_what_is_filtered_by_knows_nothing_of_speed():
    rewards = combined(MIXED_PK, 9.0)
    assert torch.equal(rewards.raw_PK, REWARDS_PK)
    quality_PK = weighted_sum_of_z_scores(REWARDS_PK[None], torch.ones(1))
    assert (rewards.total_PK - quality_PK).max() == pytest.approx(9.0)
