"""Choosing the captions that a base fails at: which are kept, and that a killed run loses nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from swiftmask.methods.speed_rl import Prompts
from swiftmask.recipes.hard_captions import hardest

PROMPTS = Prompts([f"caption {number}" for number in range(40)], {"number": list(range(40))})


class Scores:
    """Rewards of prompts by their place, remembering what was asked; `killed_at` interrupts that call."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.killed_at = killed_at

    def __call__(self, some: Prompts, places: range) -> Tensor:
        if self.killed_at is not None and places.start >= self.killed_at:
            raise KeyboardInterrupt
        assert [f"caption {place}" for place in places] == some.what
        self.asked += places
        return torch.tensor([abs(place - 20.2) for place in places])


def test_the_lowest_rewards_are_kept_in_the_order_of_the_set(tmp_path: Path) -> None:
    kept = hardest(PROMPTS, 0.1, score=Scores(), file=tmp_path / "run" / "scored.jsonl")
    assert kept.what == ["caption 19", "caption 20", "caption 21", "caption 22"]
    assert kept.columns == {"number": [19, 20, 21, 22]}


def test_at_least_one_is_kept(tmp_path: Path) -> None:
    assert hardest(PROMPTS, 1e-6, score=Scores(), file=tmp_path / "scored.jsonl").what == ["caption 20"]


def test_what_is_written_is_not_scored_again(tmp_path: Path) -> None:
    file, first, second = tmp_path / "scored.jsonl", Scores(killed_at=32), Scores()
    with pytest.raises(KeyboardInterrupt):
        hardest(PROMPTS, 0.1, score=first, file=file)
    with file.open("a") as out:
        out.write('{"prompt": "caption 32", "rew')  # killed in the middle of a line
    resumed = hardest(PROMPTS, 0.1, score=second, file=file)
    assert first.asked + second.asked == list(range(40))
    assert second.asked[0] == 32
    third = Scores()
    assert hardest(PROMPTS, 0.1, score=third, file=file) == resumed
    assert third.asked == []
