"""The captions that a base fails at. Most captions mostly succeed, so that the pictures of a group hardly
differ in reward; those that fail teach several times as much in the same rounds (docs/log.md).
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.settings import parse_json
from swiftmask.core.types import Schedule
from swiftmask.core.writing import full_disk_named
from swiftmask.methods.speed_rl import Judges, Prompts, SpeedRLConfig
from swiftmask.methods.speed_rl.rewards import weighted_sum
from swiftmask.methods.speed_rl.rollouts import as_planned, roll_out
from swiftmask.training.setup import step_seed

_TOGETHER = 16
"""Captions scored at a time; what is lost when a run is killed."""

_STREAM = 0x68617264
"""Keeps the draws of pictures apart from those that are learned from."""

Score = Callable[[Prompts, range], Tensor]
"""`score(some, places) -> rewards [N]` of the prompts at these places of the set."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A base drawing some pictures of each prompt, and what judges that are trained against make of them.

    Args:
        config: of the training: its sampling, seed and pictures together.
        num_steps: of the decode.
        num_pictures: of each prompt; their mean is its score.
    """

    base: MaskedGenerator
    judges: Judges
    config: SpeedRLConfig
    num_steps: int
    num_pictures: int

    @torch.no_grad()
    def __call__(self, some: Prompts, places: range) -> Tensor:
        drawn = some.at([index for index in range(len(places)) for _ in range(self.num_pictures)])
        numbers = range(places.start * self.num_pictures, places.stop * self.num_pictures)
        rollouts = roll_out(
            self.base,
            drawn.what,
            [step_seed(self.config.seed, number, _STREAM) for number in numbers],
            [self.num_steps] * len(numbers),
            draw=as_planned,
            plan=self._plan,
            images_per_forward=self.config.images_per_forward,
        )
        scores_MB = self.judges.score(self.base.to_pixels(rollouts.tokens_BL.long()).float(), drawn)
        scores_MPK = scores_MB.unflatten(1, (len(places), self.num_pictures))
        return weighted_sum(scores_MPK, self.judges.weights_M.to(scores_MPK.device)).mean(1)

    def _plan(self, num_steps: int) -> Schedule:
        num_masked = self.base.spec.num_tokens
        return self.base.schedule(num_steps, num_masked=num_masked, options=self.config.sampling)


def hardest(prompts: Prompts, share: float, *, score: Score, file: Path) -> Prompts:
    """That share of the prompts, at least one, whose rewards are the lowest, in the order of the set.

    Args:
        score: of a base that is not trained yet; asked for what `file` does not hold.
        file: of these prompts and this base alone; a killed run goes on where it was.
    """
    rewards = _read(file)
    rewards += _measured(prompts, range(len(rewards), len(prompts.what)), score, file)
    order = sorted(range(len(rewards)), key=rewards.__getitem__)
    return prompts.at(sorted(order[: max(1, round(share * len(rewards)))]))


def _measured(prompts: Prompts, places: range, score: Score, file: Path) -> Iterator[float]:
    """Rewards of the prompts at `places`, written as soon as they are known."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(places), _TOGETHER):
        some = places[start : start + _TOGETHER]
        rewards = score(prompts.at(some), some).tolist()
        with full_disk_named(file), file.open("a") as out:
            for place, reward in zip(some, rewards, strict=True):
                out.write(json.dumps({"prompt": prompts.what[place], "reward": reward}) + "\n")
        yield from rewards


def _read(file: Path) -> list[float]:
    """What an earlier run left; a line it was killed in is cut off the file."""
    if not file.exists():
        return []
    whole = [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    with file.open("r+b") as out:
        out.truncate(sum(map(len, whole)))
    return [_reward(line, f"{file}: line {number}") for number, line in enumerate(whole, start=1)]


def _reward(line: bytes, source: str) -> float:
    reward = parse_json(line, source=source).get("reward")
    if not isinstance(reward, int | float) or not math.isfinite(reward):
        raise ValueError(f"{source} has no reward: remove the file and run again")
    return reward
