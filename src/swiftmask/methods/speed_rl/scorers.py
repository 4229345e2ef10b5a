"""Scorers of quality: callables `f(images, prompts, **columns) -> scores`.

A reward is trained on, a judge never is: it is only logged. `images` are [B, 3, H, W] in [0, 1], `prompts`
what was asked for (class labels for a class-conditional model), `columns` further lists of the prompt set,
one entry an image. A score may be None or NaN: the scorer does not apply to that image. Functions written for
TRL (`prompts, completions, **columns`) or flow_grpo (`images, prompts, metadata`) are adapted by `as_scorer`.
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

Score = Callable[..., Scores]
"""`score(images_B3HW, prompts, **columns) -> scores_B`."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is generated, and columns that scorers may read.

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
class Reward:
    """A scorer that is trained on; its weight is not 0."""

    name: str
    score: Score
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Judge:
    """A scorer that is logged and never trained on."""

    name: str
    score: Score


class Scorers:
    """All scorers of a run, rewards first.

    Errors: ValueError unless there is at least one reward and one judge: a reward that rises while nothing
    else is watched says little.
    """

    def __init__(self, rewards: Sequence[Reward], judges: Sequence[Judge]) -> None:
        self.names = tuple(scorer.name for scorer in (*rewards, *judges))
        self.weights_M = torch.tensor([float(reward.weight) for reward in rewards] + [0.0] * len(judges))
        self.rewards, self.judges = tuple(rewards), tuple(judges)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"rewards and judges need names of their own, got {', '.join(self.names)}")
        if not rewards or not judges or not self.weights_M[: len(rewards)].all():
            raise ValueError(
                "expected at least one reward, of a weight that is not 0, and one judge, got "
                f"rewards {some([r.name for r in rewards])} and judges {some([j.name for j in judges])}"
            )

    def score(self, images_B3HW: Tensor, prompts: Prompts) -> Tensor:
        """Scores of all scorers, NaN where one does not apply: float32 [M, B].

        Errors: ValueError naming a scorer that gives another number of scores or an infinite one, and for an
        image that no reward scores.
        """
        scores_MB = scores_of((*self.rewards, *self.judges), images_B3HW, prompts)
        if scores_MB[self.weights_M != 0].isnan().all(0).any():
            raise ValueError("an image got no score from any reward")
        return scores_MB


def scores_of(scorers: Sequence[Reward | Judge], images_B3HW: Tensor, prompts: Prompts) -> Tensor:
    """Scores of all, NaN where one does not apply: float32 [M, B].

    Errors: ValueError naming a scorer that gives another number of scores or an infinite one.
    """
    return torch.stack(
        [
            _checked(
                scorer.name,
                as_scorer(scorer.score)(images_B3HW, prompts.what, **prompts.columns),
                images_B3HW,
            )
            for scorer in scorers
        ]
    )


def as_scorer(function: Score) -> Score:
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
    """Columns as flow_grpo has them: one dictionary an image."""
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
            f"{name!r} must give one score an image: expected {len(images_B3HW)}, "
            f"got shape {tuple(scores_B.shape)}"
        )
    if scores_B.isinf().any():
        raise ValueError(f"{name!r} gave an infinite score: return None where it does not apply")
    return scores_B
