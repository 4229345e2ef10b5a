"""What a shortcut learns from: rounds of images decoded while it trains; nothing is dumped to disk.

The teacher decodes a round with its own sampler, or the shortcut does and the teacher is asked what it would
have seen. The teacher's features of every step stay in memory (bounded: one round) and serve many updates,
grouped by step so that batches have one shape. A round is a function of its number (on-policy: and of the
weights it begins with) and an update of its step, so a resumed run sees the same data.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.llama import FreshTokens
from swiftmask.core.protocol import Condition, MaskedGenerator, SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.rng import SeededNoise
from swiftmask.core.schedule import with_full_steps
from swiftmask.core.tokens import feature_rows
from swiftmask.core.types import Canvas, Features, Record, Step
from swiftmask.methods.shortcut.features import AnyShortcut, ShortcutFeatures
from swiftmask.training.setup import TrainingConfig, step_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """How the teacher's features are made and used.

    Attributes:
        images_per_round: images the teacher decodes at a time (their features are kept in memory).
        updates_per_round: updates that share them.
        images_per_update: images of one update, all at the same step, both guidance branches.
        step_counts: decode lengths N, taken in turn; none are those around the base's own number of steps,
            from half to twice as many.
        max_rollout: longest chain of the shortcut's own predictions.
        token_weight: weight of the divergence between guided token distributions; None is 0.5, or 0 for a
            base of latents.
        on_policy: the shortcut under training decodes, as it stands when the round begins, with full steps
            `max_rollout + 1` apart; the teacher says what the features of its canvases should have been.
    """

    images_per_round: int = 64
    updates_per_round: int = 24
    images_per_update: int = 32
    step_counts: tuple[int, ...] = ()
    max_rollout: int = 3
    token_weight: float | None = None
    on_policy: bool = False
    seed: int = 0
    sampling: SamplingOptions = SamplingOptions()

    def __post_init__(self) -> None:
        check_fields(self)

    def of(self, base: MaskedGenerator) -> Self:
        """The same with what is left open chosen for a base.

        Errors: ValueError for a token weight that its tokens cannot have.
        """
        spec, weight = base.spec, self.token_weight
        if spec.codebook_size is None and weight:
            raise ValueError(
                f"rounds.token_weight needs codes, {spec.name} has latents: set it to 0, or leave it out"
            )
        if weight is None:
            weight = 0.0 if spec.codebook_size is None else 0.5
        steps = min(base.steps, spec.num_tokens)
        around = {max(2, min(steps * eighths // 8, spec.num_tokens)) for eighths in (4, 6, 8, 12, 16)}
        return replace(self, token_weight=weight, step_counts=self.step_counts or tuple(sorted(around)))

    def check(self, training: TrainingConfig) -> None:
        """Errors: ValueError if a checkpoint could not continue: it lacks the weights that drew its round."""
        if self.on_policy and training.save_every % self.updates_per_round:
            raise ValueError(
                "with rounds.on_policy, training.save_every must be a multiple of rounds.updates_per_round "
                f"({self.updates_per_round}), got {training.save_every}"
            )


Fresh = Tensor | FreshTokens
"""What a network reads of a decision, for all rows of a batch (X = G * B): embeddings [X, N, D], or more."""


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
    """What was generated: its number, the condition of its images, its steps with the teacher's features."""

    number: int
    condition: Condition
    records: list[Record]


_HELD_OUT_ROUND = 1 << 32
"""A round that no run reaches."""

_HELD_OUT_BATCHES, _HELD_OUT_IMAGES = 8, 16


class _Supervised:
    """Feature function of on-policy rounds: the shortcut's features; the teacher's beside them are kept."""

    name, settings = "shortcut", ()

    def __init__(self, model: MaskedGenerator, shortcut: AnyShortcut) -> None:
        self._full = FullFeatures(model)
        self._fast = ShortcutFeatures(model, copy.deepcopy(shortcut).eval())
        self.teachers: list[Features] = []

    def __call__(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        teachers = self._full(canvas, condition, step, previous)
        self.teachers.append(teachers)
        self._fast.shortcut.to(dtype=teachers.features_GBTD.dtype)
        return teachers if step.full else self._fast(canvas, condition, step, previous)


Labels = Callable[[int, int], Sequence[int] | Sequence[str]]
"""`labels(round, count)`: classes or prompts."""


class TeacherRounds:
    """The bounded buffer: batches drawn from the round that the update belongs to.

    Args:
        labels: say what is generated.
        shortcut: that is trained: it says what it reads of a decision, and generates on-policy rounds.
        accumulate: of the training; the shares of a process learn from one round.
    """

    def __init__(
        self,
        model: MaskedGenerator,
        config: RoundsConfig,
        labels: Labels,
        shortcut: AnyShortcut,
        *,
        accumulate: int = 1,
    ) -> None:
        self._model = model
        self._config = config.of(model)
        self._labels = labels
        self._shortcut = shortcut
        self._accumulate = accumulate
        self._round: _Round | None = None

    def batch(self, step: int, rank: int, num_ranks: int) -> RolloutBatch:
        """The batch of an update; the first of a round makes it decode."""
        config = self._config
        number = (step // config.updates_per_round * num_ranks + rank) // self._accumulate
        if self._round is None or number != self._round.number:
            self._round = None  # two rounds at once would be twice the memory
            self._round = self._decode(number)
        drawn = self._round
        generator = torch.Generator().manual_seed(step_seed(config.seed, step, rank))
        first = int(torch.randint(len(drawn.records) - 1, (), generator=generator))
        length = int(torch.randint(1, config.max_rollout + 1, (), generator=generator))
        picked_B = torch.randperm(config.images_per_round, generator=generator)[: config.images_per_update]
        chain = drawn.records[first : first + length + 1]
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
        if config.on_policy:
            schedule = with_full_steps(schedule, range(0, num_steps, config.max_rollout + 1))
        seeds = [
            step_seed(config.seed, number * config.images_per_round + i, 7)
            for i in range(config.images_per_round)
        ]
        what = model.encode(self._labels(number, config.images_per_round))
        condition = prepare_condition(model, what, schedule)
        canvas = model.blank(config.images_per_round)
        noise = SeededNoise(seeds, model.spec.num_tokens, model.device)
        records: list[Record] = []
        supervised = _Supervised(model, self._shortcut) if config.on_policy else None
        decode(
            model,
            condition,
            schedule,
            noise,
            canvas=canvas,
            features_fn=supervised or FullFeatures(model),
            unmask=model.unmask_rule(canvas, noise),
            on_step=records.append,
        )
        if supervised is not None:
            pairs = zip(records, supervised.teachers, strict=True)
            records = [replace(record, features=features) for record, features in pairs]
        return _Round(number, condition, records)

    @torch.no_grad()
    def _link(self, condition: Condition, before: Record, after: Record, picked_B: Tensor) -> Link:
        step, features_GBTD = after.step, after.features.features_GBTD
        num_branches, num_pictures, num_rows = features_GBTD.shape[:3]
        branches_G1 = torch.arange(num_branches, device=picked_B.device)[:, None]
        picked_X = (branches_G1 * num_pictures + picked_B).flatten()
        positions_BM = after.before.masked_positions()[picked_B]
        fresh: Fresh = self._shortcut.fresh(self._model, condition, before.decision)
        return Link(
            fresh=fresh[picked_X].float(),
            positions_BM=positions_BM,
            rows_BM=feature_rows(self._model, positions_BM, num_rows),
            target_GBTD=features_GBTD[:, picked_B],
            ratio=step.num_masked_before / self._model.spec.num_tokens,
            guidance=step.guidance,
            temperature=step.temperature,
        )


@torch.no_grad()
def held_out_loss(trainer: Any, teacher: MaskedGenerator, config: RoundsConfig, labels: Labels) -> float:
    """The mean loss over some roll-outs of a round that no update learns from, the same at every call.

    The teacher decodes the round, whoever decodes those of the training.

    Args:
        trainer: a ShortcutTrainer; `config` is that of its rounds.
    """
    counts = config.of(teacher).step_counts
    apart = replace(
        config,
        images_per_round=min(config.images_per_update, _HELD_OUT_IMAGES),
        images_per_update=min(config.images_per_update, _HELD_OUT_IMAGES),
        updates_per_round=_HELD_OUT_BATCHES,
        step_counts=(counts[len(counts) // 2],),
        on_policy=False,
    )
    rounds = TeacherRounds(teacher, apart, labels, trainer.shortcut)
    first = _HELD_OUT_ROUND * _HELD_OUT_BATCHES
    was_training = trainer.training
    trainer.eval()
    losses = [trainer(rounds.batch(first + i, 0, 1))[0] for i in range(_HELD_OUT_BATCHES)]
    trainer.train(was_training)
    return float(torch.stack(losses).mean())
