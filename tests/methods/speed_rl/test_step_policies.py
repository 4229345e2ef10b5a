"""How many steps the pictures of a group take."""

from collections import Counter

import pytest
import torch

from swiftmask.methods.speed_rl.rollouts import AsConfident, as_planned
from swiftmask.methods.speed_rl.step_policies import parse_step_policy


def counts(text: str, *, number: int = 0, prompts: int = 50, generations: int = 8) -> list[list[int]]:
    generator = torch.Generator().manual_seed(number)
    return parse_step_policy(text).counts(number, prompts, generations, generator)


def test_fixed_is_the_same_for_all():
    assert counts("fixed:16", prompts=2, generations=3) == [[16] * 3] * 2


def test_uniform_draws_every_picture_by_itself():
    seen = Counter(count for group in counts("uniform:4,8,16") for count in group)
    assert set(seen) == {4, 8, 16}
    assert min(seen.values()) > 90
    assert any(len(set(group)) < 3 or max(Counter(group).values()) > 3 for group in counts("uniform:4,8,16"))


def test_stratified_holds_every_count_equally_often_in_every_group():
    for group in counts("stratified:8,12,16,24"):
        assert Counter(group) == {8: 2, 12: 2, 16: 2, 24: 2}
    left_over = Counter()
    for group in counts("stratified:4,8,16"):
        assert set(Counter(group).values()) == {2, 3}
        left_over += Counter(group)
    assert max(left_over.values()) - min(left_over.values()) < 40


def test_a_curriculum_moves_its_centre():
    first, half, last = (set(counts("curriculum:32,8,100", number=n)[0]) for n in (0, 50, 1000))
    assert first == {16, 24, 32, 48}
    assert half == {10, 15, 20, 30}
    assert last == {4, 6, 8, 12}


def test_by_confidence_the_policy_decides():
    policy = parse_step_policy("threshold:0.9,1,64,16")
    assert policy.draw == AsConfident(0.9, 1, 64)
    assert counts("threshold:0.9,1,64,16", prompts=1, generations=2) == [[16, 16]]
    assert parse_step_policy("fixed:3").draw is as_planned


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("always:3", "unknown step policy 'always:3': expected such as fixed:16 or uniform"),
        ("fixed", "'fixed' cannot be read: expected such as 'fixed:16'"),
        ("fixed:0", "'fixed:0' cannot be read"),
        ("fixed:2.5", "'fixed:2.5' cannot be read"),
        ("uniform:4,x", "'uniform:4,x' cannot be read: expected such as 'uniform:8,12,16,24'"),
        ("curriculum:32,8", "cannot be read: expected such as 'curriculum:32,8,200'"),
        ("threshold:1.5,1,4,8", "cannot be read: expected such as 'threshold:0.9,1,64,16'"),
        ("threshold:0.5,8,4,8", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_with_an_example(text, message):
    with pytest.raises(ValueError, match=message):
        parse_step_policy(text)


def test_a_group_too_small_for_its_counts_is_refused():
    with pytest.raises(ValueError, match=r"a group of 2 cannot hold .*take num_generations=3 or more"):
        counts("stratified:4,8,16", generations=2)
