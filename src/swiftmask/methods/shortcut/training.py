"""Training a shortcut on features its teacher makes while it trains: nothing is dumped to disk.

The teacher decodes a round of pictures with its own sampler; the features of every step stay in memory
(bounded: one round) and serve many updates, grouped by step so that batches have one shape. A round is a
function of its number and an update of its step, so a resumed run sees the same data. Each update rolls the
shortcut forward through up to `max_rollout` of its own predictions, as inference will, and matches the
teacher's features at the positions still masked after each step (MIGM-Shortcut, arXiv 2602.23996, trains
single steps on stored features and one step count). An optional second term matches the guided token
distributions, which is what sampling reads. Forward divergence covers what the teacher might draw, and a
shortcut that cannot tell becomes vague; reverse divergence keeps to what the teacher is likely to draw.

Both networks are trained by the same code: `fresh` says what a network reads of a decision, and what it
returns goes to the network as it is. Upstream's loss for Lumina-DiMOO covers prompt and decided codes too;
here only rows that are still sampled from count.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import Condition, MaskedGenerator, SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.core.schedule import uniform_full_steps, with_full_steps
from swiftmask.core.tokens import CategoricalTokens, gather_rows
from swiftmask.core.types import Canvas, Decision, Features, Record, Step
from swiftmask.methods.shortcut.features import AnyShortcut, ShortcutFeatures
from swiftmask.methods.shortcut.network import Shortcut
from swiftmask.training.setup import step_seed


def forward_divergence(predicted_X: Tensor, teachers_X: Tensor) -> Tensor:
    """KL(teacher || predicted) of log-probabilities [..., V], summed over everything."""
    return F.kl_div(predicted_X, teachers_X, log_target=True, reduction="sum")


def reverse_divergence(predicted_X: Tensor, teachers_X: Tensor) -> Tensor:
    """KL(predicted || teacher), the same way."""
    return forward_divergence(teachers_X, predicted_X)


DIVERGENCES = {"forward": forward_divergence, "reverse": reverse_divergence}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """How the teacher's features are made and used.

    Attributes:
        images_per_round: pictures the teacher decodes at a time (their features are kept in memory).
        updates_per_round: updates that share them.
        images_per_update: pictures of one update, all at the same step, both guidance branches.
        step_counts: decode lengths N, taken in turn.
        max_rollout: longest chain of the shortcut's own predictions.
        token_weight: weight of the divergence between guided token distributions.
        token_divergence: "forward", from the teacher's to the shortcut's, or "reverse".

    Errors: ValueError for another divergence.
    """

    images_per_round: int = 64
    updates_per_round: int = 24
    images_per_update: int = 32
    step_counts: tuple[int, ...] = (8, 12, 16, 24, 32)
    max_rollout: int = 3
    token_weight: float = 0.0
    token_divergence: str = "forward"
    seed: int = 0
    sampling: SamplingOptions = SamplingOptions()

    def __post_init__(self) -> None:
        if self.token_divergence not in DIVERGENCES:
            raise ValueError(
                f"token_divergence must be {' or '.join(DIVERGENCES)}, got {self.token_divergence!r}"
            )


class Fresh(Protocol):
    """What a network reads of a decision, for all rows of a batch (X = G * B): a tensor [X, N, D], or what
    can be indexed and cast like one.
    """

    def __getitem__(self, rows_X: Tensor, /) -> Self: ...

    def float(self) -> Self: ...


ReadFresh = Callable[[Any, Condition, Decision], Fresh]
"""`fresh(model, condition, decision)`: `Shortcut.fresh` or `RotaryShortcut.fresh`."""


@dataclass(frozen=True, slots=True)
class Link:
    """One step of a roll-out.

    Attributes:
        fresh: what the step before decided, as the network reads it, with float32 embeddings.
        positions_BM: positions still masked when this step starts, where the prediction is compared.
        rows_BM: where those stand in the features.
        target_GBTD: the teacher's features of this step.
        ratio: share of the canvas still masked; `guidance` and `temperature` are the step's.
    """

    fresh: Fresh
    positions_BM: Tensor
    rows_BM: Tensor
    target_GBTD: Tensor
    ratio: float
    guidance: float
    temperature: float


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """The features a roll-out starts from, and its links in order."""

    start_GBTD: Tensor
    links: tuple[Link, ...]


@dataclass(frozen=True, slots=True)
class _Round:
    """What the teacher drew: its number, the condition of all its pictures, and its steps."""

    number: int
    condition: Condition
    records: list[Record]


class _Supervised:
    """The student's features to sample from, as in an accelerated decode, and the teacher's on the same
    canvases kept.
    """

    name = "shortcut"

    def __init__(self, model: MaskedGenerator, student: AnyShortcut) -> None:
        self._full = FullFeatures(model)
        self._fast = ShortcutFeatures(model, copy.deepcopy(student).eval())
        self.teachers: list[Features] = []

    def __call__(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        teachers = self._full(canvas, condition, step, previous)
        self.teachers.append(teachers)
        self._fast.shortcut.to(dtype=teachers.features_GBTD.dtype)
        return teachers if step.full else self._fast(canvas, condition, step, previous)


class TeacherRounds:
    """The bounded buffer: batches drawn from the round that the update belongs to.

    Args:
        labels: `labels(round, count)` says what the teacher draws (classes or prompts).
        fresh: how the network that is trained reads the teacher's decisions.
        student: the network that is trained, for rounds that it decodes itself.
    """

    def __init__(
        self,
        model: MaskedGenerator,
        config: RoundsConfig,
        labels: Callable[[int, int], Sequence[int] | Sequence[str]],
        fresh: ReadFresh = Shortcut.fresh,
        student: AnyShortcut | None = None,
    ) -> None:
        self._model = model
        self._config = config
        self._labels = labels
        self._fresh = fresh
        self._student = student
        self._round: _Round | None = None

    def batch(self, step: int, rank: int, num_ranks: int) -> RolloutBatch:
        """The batch of an update; the first of a round makes the teacher decode."""
        config = self._config
        number = (step // config.updates_per_round) * num_ranks + rank
        if self._round is None or number != self._round.number:
            self._round = None  # two rounds at once would be twice the memory
            self._round = self._decode(number)
        drawn = self._round
        generator = torch.Generator().manual_seed(step_seed(config.seed, step, rank))
        first = int(torch.randint(len(drawn.records) - 1, (), generator=generator))
        length = int(torch.randint(1, config.max_rollout + 1, (), generator=generator))
        picked_B = torch.randperm(config.images_per_round, generator=generator)[: config.images_per_update]
        chain = drawn.records[first : first + length + 1]
        picked_B = picked_B.to(self._model.device)
        links = tuple(
            self._link(drawn.condition, before, after, picked_B)
            for before, after in zip(chain, chain[1:], strict=False)
        )
        return RolloutBatch(chain[0].features.features_GBTD[:, picked_B], links)

    @torch.no_grad()
    def _decode(self, number: int) -> _Round:
        config, model = self._config, self._model
        num_steps = config.step_counts[number % len(config.step_counts)]
        schedule = model.schedule(num_steps, num_masked=model.spec.num_tokens, options=config.sampling)
        seeds = [
            step_seed(config.seed, number * config.images_per_round + i, 7)
            for i in range(config.images_per_round)
        ]
        what = model.encode(self._labels(number, config.images_per_round))
        condition = prepare_condition(model, what, schedule)
        canvas = model.blank(config.images_per_round)
        noise = SeededNoise(seeds, model.spec.num_tokens, model.device)
        records: list[Record] = []
        if self._student is not None:
            num_full = math.ceil(num_steps / (config.max_rollout + 1))
            schedule = with_full_steps(schedule, uniform_full_steps(num_steps, num_full))
        features_fn = FullFeatures(model) if self._student is None else _Supervised(model, self._student)
        decode(
            model,
            condition,
            schedule,
            noise,
            canvas=canvas,
            features_fn=features_fn,
            unmask=model.unmask_rule(canvas, noise),
            on_step=records.append,
        )
        if isinstance(features_fn, _Supervised):
            records = [
                replace(record, features=teachers)
                for record, teachers in zip(records, features_fn.teachers, strict=True)
            ]
        return _Round(number, condition, records)

    @torch.no_grad()
    def _link(self, condition: Condition, before: Record, after: Record, picked_B: Tensor) -> Link:
        step, features_GBTD = after.step, after.features.features_GBTD
        num_branches, num_pictures, num_rows = features_GBTD.shape[:3]
        branches_G1 = torch.arange(num_branches, device=picked_B.device)[:, None]
        picked_X = (branches_G1 * num_pictures + picked_B).flatten()
        positions_BM = after.before.masked_positions()[picked_B]
        return Link(
            fresh=self._fresh(self._model, condition, before.decision)[picked_X].float(),
            positions_BM=positions_BM,
            rows_BM=_rows(self._model, positions_BM, num_rows),
            target_GBTD=features_GBTD[:, picked_B],
            ratio=step.num_masked_before / self._model.spec.num_tokens,
            guidance=step.guidance,
            temperature=step.temperature,
        )


class ShortcutTrainer(nn.Module):
    """The shortcut with its roll-out loss as `forward`.

    Args:
        teacher: needed for the token term only (its head); its weights are not trained and not saved here.
        rounds: say how much the token term weighs and which divergence it is.
    """

    def __init__(self, shortcut: AnyShortcut, teacher: MaskedGenerator, rounds: RoundsConfig) -> None:
        super().__init__()
        self.shortcut = shortcut
        self._teacher = (teacher,)  # in a tuple, so that it is not a submodule
        self._token_weight = rounds.token_weight
        self._token_divergence = DIVERGENCES[rounds.token_divergence]

    def forward(self, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the chain of feature (and token) errors at masked positions.

        Metrics: `mse` against `copy_mse`, the same for the features the chain started from (the baseline a
        shortcut must beat); `cosine` of the predictions.
        """
        features_GBTD = batch.start_GBTD.float()
        loss = features_GBTD.new_zeros(())
        sums = {
            name: features_GBTD.new_zeros(()) for name in ("mse", "copy_mse", "cosine", "token_divergence")
        }
        for link in batch.links:
            features_GBTD = self._advance(features_GBTD, link)
            predicted, target, start = (
                _at(f, link.rows_BM) for f in (features_GBTD, link.target_GBTD, batch.start_GBTD)
            )
            mse = F.mse_loss(predicted, target)
            divergence = self._divergence(features_GBTD, link)
            loss = loss + mse + self._token_weight * divergence
            sums["mse"] = sums["mse"] + mse
            sums["copy_mse"] = sums["copy_mse"] + F.mse_loss(start, target)
            sums["cosine"] = sums["cosine"] + F.cosine_similarity(predicted, target, dim=-1).mean()
            sums["token_divergence"] = sums["token_divergence"] + divergence
        count = len(batch.links)
        return loss / count, {name: value / count for name, value in sums.items()}

    def _advance(self, features_GBTD: Tensor, link: Link) -> Tensor:
        num_branches, batch = features_GBTD.shape[:2]
        ratio_X = torch.full((num_branches * batch,), link.ratio, device=features_GBTD.device)
        advanced_XTD = self.shortcut(features_GBTD.flatten(0, 1), link.fresh, ratio_X)
        return advanced_XTD.float().unflatten(0, (num_branches, batch))

    def _divergence(self, features_GBTD: Tensor, link: Link) -> Tensor:
        if self._token_weight == 0.0:
            return features_GBTD.new_zeros(())
        predicted, target = (self._log_probs(f, link) for f in (features_GBTD, link.target_GBTD))
        return self._token_divergence(predicted, target) / predicted[..., 0].numel()

    def _log_probs(self, features_GBTD: Tensor, link: Link) -> Tensor:
        (teacher,) = self._teacher
        distribution = teacher.tokens(features_GBTD, link.positions_BM, link.guidance)
        if not isinstance(distribution, CategoricalTokens):
            raise ValueError(
                f"token_weight needs categorical tokens, {teacher.spec.name} has none: set it to 0"
            )
        return (distribution.logits_BMV / link.temperature).log_softmax(-1)


def train_step(
    model: Callable[..., tuple[Tensor, dict[str, Tensor]]], batch: RolloutBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    """One roll-out batch through the shortcut."""
    return model(batch)


def _rows(model: MaskedGenerator, positions_BM: Tensor, num_rows: int) -> Tensor:
    """Where canvas positions stand among `num_rows` features: first and in order, unless the model says
    otherwise (`columns`, as for ML-Cache).
    """
    columns: Callable[[Tensor, int], Tensor] | None = getattr(model, "columns", None)
    return positions_BM if columns is None else columns(positions_BM, num_rows)


def _at(features_GBTD: Tensor, rows_BM: Tensor) -> Tensor:
    return gather_rows(features_GBTD.float(), rows_BM)
