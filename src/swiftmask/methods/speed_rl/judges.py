"""Judges of quality: callables `f(images, prompts, **columns) -> scores`, trained against or held out.

`images` are [B, 3, H, W] in [0, 1], `prompts` what was to be drawn (class labels for a class-conditional
model), `columns` further lists of the prompt set, one entry a picture. A score may be None or NaN: the
judge does not apply to that picture. Functions written for TRL (`prompts, completions, **columns`) or
flow_grpo (`images, prompts, metadata`) are adapted by `as_reward`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from swiftmask.core.reading import some

What = Sequence[str] | Sequence[int]
"""Prompts or class labels."""

Columns = Mapping[str, Sequence[object]]
"""Further entries of a prompt set by name, one each prompt."""

Scores = Tensor | Sequence[float | None]

Reward = Callable[..., Scores]
"""`reward(images_B3HW, prompts, **columns) -> scores_B`."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is drawn, and columns that judges may read.

    Errors: ValueError for an empty set or a column of another length.
    """

    what: What
    columns: Columns = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.what:
            raise ValueError("expected at least one prompt or class, got none")
        uneven = [name for name, column in self.columns.items() if len(column) != len(self.what)]
        if uneven:
            raise ValueError(f"columns {some(uneven)} need one entry for each of {len(self.what)} prompts")

    def at(self, indices: Sequence[int]) -> "Prompts":
        """The entries at `indices`, in that order."""
        what: Any = [self.what[i] for i in indices]
        return Prompts(what, {name: [column[i] for i in indices] for name, column in self.columns.items()})


@dataclass(frozen=True, slots=True)
class Judge:
    """A named reward. A weight of 0 holds it out: it is logged and never trained against."""

    name: str
    reward: Reward
    weight: float = 1.0


class Judges:
    """All judges of a run.

    Errors: ValueError unless at least one is trained against and at least one is held out: a reward that
    rises while nothing else is watched says little.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        self.names = tuple(judge.name for judge in judges)
        self.weights_M = torch.tensor([float(judge.weight) for judge in judges])
        self._rewards = tuple(as_reward(judge.reward) for judge in judges)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"judges need names of their own, got {', '.join(self.names)}")
        if not (self.weights_M != 0).any() or not (self.weights_M == 0).any():
            raise ValueError(
                "expected at least one judge with a weight and one held out (weight 0), got weights "
                f"{self.weights_M.tolist()} of {some(list(self.names))}"
            )

    def score(self, images_B3HW: Tensor, prompts: Prompts) -> Tensor:
        """Scores of all judges, NaN where one does not apply: float32 [M, B].

        Errors: ValueError naming a judge that gives another number of scores, an infinite one, or none at
        all for a picture to those trained against.
        """
        scores_MB = torch.stack(
            [
                _checked(name, reward(images_B3HW, prompts.what, **prompts.columns), images_B3HW)
                for name, reward in zip(self.names, self._rewards, strict=True)
            ]
        )
        if scores_MB[self.weights_M != 0].isnan().all(0).any():
            raise ValueError("an image got no score from any judge that is trained against")
        return scores_MB


def as_reward(function: Reward) -> Reward:
    """Adapts a function of TRL's or flow_grpo's signature, told by the names of its parameters."""
    names = inspect.signature(function).parameters
    if "completions" in names:
        return lambda images, prompts, **columns: function(prompts=prompts, completions=images, **columns)
    if "metadata" in names:
        return lambda images, prompts, **columns: _of_flow_grpo(
            function(images, prompts, _rows(columns, len(prompts)))
        )
    return function


def _rows(columns: Columns, count: int) -> list[dict[str, object]]:
    """Columns as flow_grpo has them: one dictionary a picture."""
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def _of_flow_grpo(result: Any) -> Scores:
    """`(scores or {"avg": scores}, info)` to scores."""
    scores, _ = result
    return scores["avg"] if isinstance(scores, Mapping) else scores


def _checked(name: str, scores: Scores, images_B3HW: Tensor) -> Tensor:
    if not isinstance(scores, Tensor):
        scores = torch.tensor([torch.nan if score is None else float(score) for score in scores])
    scores_B = scores.detach().float().to(images_B3HW.device)
    if scores_B.shape != images_B3HW.shape[:1]:
        raise ValueError(
            f"judge {name!r} must give one score an image: expected {len(images_B3HW)}, "
            f"got shape {tuple(scores_B.shape)}"
        )
    if scores_B.isinf().any():
        raise ValueError(f"judge {name!r} gave an infinite score: return None where it does not apply")
    return scores_B
