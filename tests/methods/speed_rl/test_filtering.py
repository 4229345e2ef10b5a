"""The filter: what it drops, when it starts, and that it is part of a checkpoint."""

import pytest
import torch

from swiftmask.methods.speed_rl import FilterConfig
from swiftmask.methods.speed_rl.filtering import Filter


def spread(*widths: float) -> torch.Tensor:
    """Groups of four whose rewards spread so widely."""
    return torch.tensor(widths)[:, None] * torch.tensor([[-1.0, 0.0, 0.5, 1.0]]) + 0.5


WIDTHS = [0.1 * (1 + i) for i in range(8)]


def make(**settings) -> Filter:
    return Filter(FilterConfig(window=8, active_after=8, **settings), 4)


def test_nothing_is_dropped_until_enough_was_seen():
    filtering = make(percentile=50)
    first = filtering(spread(*WIDTHS[:4]))
    assert first.kept_PK.all()
    assert first.threshold == -torch.inf
    second = filtering(spread(*WIDTHS[4:]))
    assert second.threshold.isfinite()
    assert second.kept_PK.all()  # the narrow half was in the first round


def test_groups_fall_by_their_spread():
    found = make(percentile=25)(spread(*WIDTHS))
    assert found.kept_PK[:, 0].tolist() == [False, False, *[True] * 6]
    assert (found.kept_PK == found.kept_PK[:, :1]).all()


def test_groups_of_equal_rewards_are_always_dropped():
    """Even without a percentile, and where nothing at all is left there is no NaN."""
    found = make(percentile=0)(spread(0.0, 0.3, 0.0))
    assert found.kept_PK[:, 0].tolist() == [False, True, False]
    assert not make(percentile=50)(spread(*[0.0] * 8)).kept_PK.any()


def test_the_window_forgets():
    filtering = make(percentile=50)
    filtering(spread(*[9.0] * 8))
    assert not filtering(spread(0.1, 0.2)).kept_PK.any()
    filtering(spread(*[0.1] * 6))
    assert filtering(spread(0.3, 0.4)).kept_PK.all()


def test_a_restored_filter_goes_on_as_the_old_one():
    first = make(percentile=50)
    first(spread(*WIDTHS[:6]))
    second = make(percentile=50)
    second.load_state_dict(first.state_dict())
    for rewards_PK in (spread(0.3, 0.9), spread(0.2, 0.55, 0.7)):
        ours, theirs = first(rewards_PK), second(rewards_PK)
        assert torch.equal(ours.kept_PK, theirs.kept_PK)
        assert torch.equal(ours.threshold, theirs.threshold)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"percentile": 100}, "percentile must be a number of at least 0 and below 100, got 100"),
        ({"active_after": 300}, "filter.active_after must be at most filter.window, got 300 and 256"),
    ],
)
def test_impossible_filters_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FilterConfig(**settings)
