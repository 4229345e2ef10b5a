"""Rewards and judges: the three signatures, scores that do not apply, and the rule of one held out."""

import pytest
import torch

from swiftmask.methods.speed_rl import Judge, Prompts, Reward, Scorers

IMAGES_B3HW = torch.rand(3, 3, 4, 4)
PROMPTS = Prompts(["a", "b", "c"], {"difficulty": [1, 2, 3]})


def ours(images, prompts, difficulty):
    return torch.tensor([len(prompts) + d for d in difficulty]) + images.mean() * 0


def of_trl(prompts, completions, **columns):
    assert completions is IMAGES_B3HW
    return [1.0, None, float(columns["difficulty"][2])]


def of_flow_grpo(images, prompts, metadata):
    return {"avg": [row["difficulty"] * 0.5 for row in metadata]}, {"more": "ignored"}


def scores(reward) -> torch.Tensor:
    return Scorers([Reward("a", reward)], [Judge("b", ours)]).score(IMAGES_B3HW, PROMPTS)


def test_three_signatures_are_read():
    scorers = Scorers([Reward("ours", ours, 2.0), Reward("trl", of_trl)], [Judge("flow", of_flow_grpo)])
    scores_MB = scorers.score(IMAGES_B3HW, PROMPTS)
    expected_MB = torch.tensor([[4.0, 5.0, 6.0], [1.0, torch.nan, 3.0], [0.5, 1.0, 1.5]])
    torch.testing.assert_close(scores_MB, expected_MB, equal_nan=True)
    assert scorers.weights_M.tolist() == [2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda images, prompts, **columns: [1.0], r"'a' must give one score an image: expected 3"),
        (lambda images, prompts, **columns: [1.0, 2.0, float("inf")], "'a' gave an infinite score"),
        (lambda images, prompts, **columns: [1.0, None, 2.0], "an image got no score from any reward"),
    ],
)
def test_bad_scores_are_refused(reward, message):
    with pytest.raises(ValueError, match=message):
        scores(reward)


@pytest.mark.parametrize(
    ("rewards", "judges"),
    [([Reward("a", ours)], []), ([], [Judge("b", ours)]), ([Reward("a", ours, 0.0)], [Judge("b", ours)])],
)
def test_something_is_trained_on_and_something_held_out(rewards, judges):
    with pytest.raises(ValueError, match="at least one reward, of a weight that is not 0, and one judge"):
        Scorers(rewards, judges)


def test_names_are_unique():
    with pytest.raises(ValueError, match="names of their own, got a, a"):
        Scorers([Reward("a", ours)], [Judge("a", ours)])


def test_prompts_are_chosen_with_their_columns():
    chosen = PROMPTS.at([2, 0, 2])
    assert chosen.what == ["c", "a", "c"]
    assert chosen.columns == {"difficulty": [3, 1, 3]}
    with pytest.raises(ValueError, match="columns x need one entry for each of 2 prompts"):
        Prompts(["a", "b"], {"x": [1]})
    with pytest.raises(ValueError, match="at least one prompt"):
        Prompts([])
