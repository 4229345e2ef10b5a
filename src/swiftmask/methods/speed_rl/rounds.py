"""The batches of Speed-RL: rounds of pictures drawn by the policy itself, scored, and learned from.

Prompts, step counts and seeds are functions of the round, and the pictures of these and of the policy. What
a round gave is kept in buffers of the trainer, the same in every process: a run killed in the middle of a
round goes on with it, and the share of a process in an update does not depend on how pictures were shared
for drawing. So one process and several learn the same from the same round.
"""

import time
from collections.abc import Callable, Sequence

import torch
from accelerate.utils import gather
from torch import Tensor

from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.types import Schedule
from swiftmask.methods.speed_rl.filtering import Kept
from swiftmask.methods.speed_rl.rewards import Rewards, advantages, combine, speed_reward
from swiftmask.methods.speed_rl.rollouts import Replay, Rollouts, replays, roll_out
from swiftmask.methods.speed_rl.scorers import Prompts, Scorers
from swiftmask.methods.speed_rl.training import Lesson, SpeedRLBatch, SpeedRLTrainer
from swiftmask.training.setup import Metrics, TrainingConfig, learning_rate_factor, step_seed

_PICTURE_STREAM = 0x70696374
_COUNT_STREAM = 0x73746570
_PROMPT_STREAM = 0x70726F6D
"""Keep the draws of pictures, step counts and prompt orders apart."""

Gather = Callable[[Tensor], Tensor]
"""`gather(rows_X...) -> rows` of all processes, in their order."""


def _gathered(rows: Tensor) -> Tensor:
    """As accelerate does; of one process, as they are."""
    every = gather(rows)
    assert isinstance(every, Tensor)
    return every


class Rounds:
    """Batches for `SpeedRLTrainer` as a function of the step and, at the first step of a round, its policy.

    Args:
        trainer: the one that is trained; the pictures of a round go into its buffers.
        training: of the loop; tells in what precision pictures are drawn.
        gather_rows: collects rows of all processes.

    Errors: ValueError for a batch size or a precision that does not go with the trainer's config.
    """

    def __init__(
        self,
        trainer: SpeedRLTrainer,
        prompts: Prompts,
        scorers: Scorers,
        training: TrainingConfig,
        *,
        gather_rows: Gather = _gathered,
    ) -> None:
        _check(trainer, training)
        self._trainer = trainer
        self._config = trainer.config
        self._prompts = prompts
        self._scorers = scorers
        self._training = training
        self._gather = gather_rows
        self._clock = _Clock()

    def batch(self, step: int, rank: int, num_ranks: int) -> SpeedRLBatch:
        """The lessons of an update; the first of a round draws and scores its pictures.

        Metrics: `lr`, `step_time` and `time/...` in seconds, and at the first update of a round those of
        `round_metrics`.
        """
        config = self._config
        number, update = divmod(step, config.updates_per_round)
        metrics = self._clock.start()
        metrics["lr"] = _scalar(self._training.learning_rate * learning_rate_factor(step, self._training))
        shares = self._training.accumulate
        if update == 0 and rank % shares == 0:  # once per process
            metrics |= self._draw(number, rank // shares, num_ranks // shares)
        lessons = self._lessons(number, update % config.steps_per_generation, rank, num_ranks)
        return SpeedRLBatch(lessons, metrics | self._clock.stop())

    @torch.no_grad()
    def _draw(self, number: int, rank: int, num_ranks: int) -> Metrics:
        """Fill the trainer's buffers with round `number`."""
        held = self._trainer.round
        mine = share(range(self._config.generation_batch_size), rank, num_ranks)
        prompts, planned = self._assigned(number, mine)
        with self._autocast():
            rollouts = roll_out(
                self._model,
                prompts.what,
                [step_seed(self._config.seed, self._first(number) + i, _PICTURE_STREAM) for i in mine],
                planned,
                plan=self._plan,
                images_per_forward=self._config.images_per_forward,
            )
            self._remember_likelihoods(rollouts, prompts, planned)
        self._clock.lap("rollout")
        scores_BM = self._gather(self._scores(rollouts, prompts))
        held.tokens_BL.copy_(self._gather(rollouts.tokens_BL))
        held.decided_at_BL.copy_(self._gather(rollouts.decided_at_BL))
        metrics = self._reward(scores_BM)
        self._clock.lap("reward")
        return metrics

    def _reward(self, scores_BM: Tensor) -> Metrics:
        """Advantages of the whole round, and which of its pictures to learn from."""
        config, held = self._config, self._trainer.round
        groups = (config.num_prompts, config.num_generations)
        scores_MPK = scores_BM.T.unflatten(1, groups)
        steps_PK = (held.decided_at_BL.amax(dim=1) + 1).view(groups)
        rewards = combine(
            scores_MPK,
            self._scorers.weights_M.to(scores_BM.device),
            speed_reward(steps_PK, config.step_counts),
            speed_weight=config.speed_weight,
        )
        advantages_PK = advantages(rewards.total_PK, clip=config.adv_clip_max)
        kept = self._trainer.filter(rewards.raw_PK)
        held.advantages_B.copy_(advantages_PK.flatten())
        held.kept_B.copy_(kept.kept_PK.flatten())
        tokens_PKL = held.tokens_BL.unflatten(0, groups)
        names = self._scorers.names
        return round_metrics(names, scores_MPK, rewards=rewards, steps_PK=steps_PK, kept=kept) | {
            "diversity": diversity(tokens_PKL)
        }

    def _remember_likelihoods(self, rollouts: Rollouts, prompts: Prompts, planned: Sequence[int]) -> None:
        """Those of the policy that drew, computed as the updates will; one update a round needs none."""
        if self._config.updates_per_round == 1:
            return
        scorer = self._trainer.scorer(None)
        log_prob_BL = torch.zeros_like(rollouts.tokens_BL, dtype=torch.float32)
        for replay in self._replays(rollouts, prompts, planned):
            log_prob_BL[list(replay.rows)] = scorer(replay).log_prob_BL
        self._trainer.round.old_log_prob_BL.copy_(self._gather(log_prob_BL))

    def _scores(self, rollouts: Rollouts, prompts: Prompts) -> Tensor:
        """Of all scorers: [B, M]."""
        size, parts = self._config.images_per_forward, []
        for first in range(0, len(prompts.what), size):
            rows = range(first, min(first + size, len(prompts.what)))
            images_B3HW = self._model.to_pixels(rollouts.tokens_BL[rows.start : rows.stop].long()).float()
            parts.append(self._scorers.score(images_B3HW, prompts.at(rows)).T)
        return torch.cat(parts).contiguous()

    def _lessons(self, number: int, part: int, rank: int, num_ranks: int) -> list[Lesson]:
        """Of one part of the round, this process's share of what the filter kept."""
        config, held = self._config, self._trainer.round
        size = config.generation_batch_size // config.steps_per_generation
        images = range(part * size, (part + 1) * size)
        is_kept = held.kept_B.tolist()
        kept = [image for image in images if is_kept[image]]
        mine = kept[rank::num_ranks]
        weight = num_ranks / len(kept) if mine else 0.0  # processes are averaged over
        mine = mine or [images[0]]  # of weight 0: every process takes part in a backward pass
        prompts, planned = self._assigned(number, mine)
        lessons = []
        for replay in self._replays(
            Rollouts(held.tokens_BL[mine], held.decided_at_BL[mine]), prompts, planned
        ):
            rows = [mine[row] for row in replay.rows]
            old_BL = held.old_log_prob_BL[rows] if config.updates_per_round > 1 else None
            weights_B = torch.full_like(held.advantages_B[rows], weight)
            lessons.append(Lesson(replay, old_BL, held.advantages_B[rows], weights_B))
        return lessons

    def _assigned(self, number: int, images: Sequence[int]) -> tuple[Prompts, list[int]]:
        """What some pictures of a round show, and how many steps are planned for each."""
        config = self._config
        generator = torch.Generator().manual_seed(step_seed(config.seed, number, _COUNT_STREAM))
        counts = step_counts(config.step_counts, config.num_prompts, config.num_generations, generator)
        planned = [count for group in counts for count in group]
        indices = prompt_indices(number, config.num_prompts, len(self._prompts.what), config.seed)
        shown = [indices[image // config.num_generations] for image in images]
        return self._prompts.at(shown), [planned[image] for image in images]

    def _replays(self, rollouts: Rollouts, prompts: Prompts, planned: Sequence[int]) -> list[Replay]:
        return replays(
            self._model,
            rollouts,
            prompts.what,
            planned,
            plan=self._plan,
            images_per_forward=self._config.images_per_forward,
        )

    def _plan(self, num_steps: int) -> Schedule:
        spec = self._model.spec
        return self._model.schedule(num_steps, num_masked=spec.num_tokens, options=self._config.sampling)

    def _first(self, number: int) -> int:
        return number * self._config.generation_batch_size

    def _autocast(self) -> torch.autocast:
        device, mixed = self._model.device.type, self._training.precision == "bf16"
        return torch.autocast(device, torch.bfloat16, enabled=mixed)

    @property
    def _model(self) -> MaskedGenerator:
        return self._trainer.policy


def prompt_indices(number: int, num_prompts: int, size: int, seed: int) -> list[int]:
    """Which of `size` prompts round `number` shows: all of them in a new order, again and again."""
    orders: dict[int, list[int]] = {}
    for position in range(number * num_prompts, (number + 1) * num_prompts):
        epoch = position // size
        if epoch not in orders:
            generator = torch.Generator().manual_seed(step_seed(seed, epoch, _PROMPT_STREAM))
            orders[epoch] = torch.randperm(size, generator=generator).tolist()
    positions = range(number * num_prompts, (number + 1) * num_prompts)
    return [orders[position // size][position % size] for position in positions]


def step_counts(
    choices: Sequence[int], num_prompts: int, num_generations: int, generator: torch.Generator
) -> list[list[int]]:
    """Planned number of steps of each image, one list a group: in every group each count as often as any
    other; where that leaves some over, a random one begins.
    """
    size = len(choices)
    first_P = torch.randint(size, (num_prompts,), generator=generator).tolist()
    return [[choices[(first + i) % size] for i in range(num_generations)] for first in first_P]


def share(images: range, rank: int, num_ranks: int) -> range:
    """The part of some pictures that a process takes. Errors: ValueError if they do not divide evenly."""
    if len(images) % num_ranks:
        raise ValueError(f"{len(images)} images cannot be shared evenly by {num_ranks} processes")
    size = len(images) // num_ranks
    return images[rank * size : (rank + 1) * size]


class _Clock:
    """Wall-clock of a step's parts, in seconds; an update ends where the next batch is asked for."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._last = 0.0
        self._laps: dict[str, float] = {}

    def start(self) -> Metrics:
        """Times of the step before."""
        now = time.perf_counter()
        before: dict[str, float] = {}
        if self._started is not None:
            before = {"step_time": now - self._started, "time/update": now - self._last}
        self._started = self._last = now
        self._laps = {}
        return {name: _scalar(value) for name, value in before.items()}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[f"time/{name}"] = now - self._last
        self._last = now

    def stop(self) -> Metrics:
        """Times of this step's laps."""
        self._last = time.perf_counter()
        return {name: _scalar(value) for name, value in self._laps.items()}


def _scalar(value: float) -> Tensor:
    return torch.tensor(value)


def _check(trainer: SpeedRLTrainer, training: TrainingConfig) -> None:
    config = trainer.config
    size = config.generation_batch_size // config.steps_per_generation
    if training.batch_size != size:
        raise ValueError(
            f"batch_size must be generation_batch_size / steps_per_generation = {size}, "
            f"got {training.batch_size}"
        )
    if training.precision == "bf16-weights" and config.updates_per_round > 1:
        raise ValueError(
            "several updates a round need old likelihoods of the same precision: "
            "take precision 'bf16' or 'no', got 'bf16-weights'"
        )


@torch.no_grad()
def round_metrics(
    names: Sequence[str], scores_MPK: Tensor, *, rewards: Rewards, steps_PK: Tensor, kept: Kept
) -> Metrics:
    """Metrics under TRL's names where it has them.

    `reward` is what advantages are made from, `reward_std` its mean spread within a group;
    `quality_reward` and `reward_by_steps/N` are the weighted sum of the rewards in their own units, and
    `rewards/NAME/...` rewards and judges one by one. `filter/threshold` is missing while the
    filter is inactive.
    """
    std_P = rewards.total_PK.std(dim=1)
    metrics = {
        "reward": rewards.total_PK.mean(),
        "reward_std": std_P.mean(),
        "frac_reward_zero_std": (std_P == 0).float().mean(),
        "quality_reward": rewards.raw_PK.mean(),
        "speed_reward": rewards.speed_PK.mean(),
        "filter/kept_frac": kept.kept_PK.float().mean(),
    }
    if kept.threshold.isfinite():
        metrics["filter/threshold"] = kept.threshold
    for name, score_PK in zip(names, scores_MPK, strict=True):
        known_X = score_PK[~score_PK.isnan()]
        metrics |= {f"rewards/{name}/mean": known_X.mean(), f"rewards/{name}/std": known_X.std()}
    return metrics | _by_steps(rewards.raw_PK, steps_PK)


def diversity(tokens_PKL: Tensor) -> Tensor:
    """Share of the canvas at which two pictures of a prompt differ in their codes, over all pairs."""
    num_alike = tokens_PKL.shape[1]
    differ_PKK = torch.stack(
        [(tokens_PKL != tokens_PKL[:, [k]]).float().mean(-1) for k in range(num_alike)], dim=1
    )
    return differ_PKK.sum() / (len(tokens_PKL) * num_alike * (num_alike - 1))


def _by_steps(quality_PK: Tensor, steps_PK: Tensor) -> Metrics:
    metrics = {"steps/mean": steps_PK.float().mean()}
    for num_steps in steps_PK.unique().tolist():
        these_PK = steps_PK == num_steps
        metrics[f"steps/hist/{num_steps}"] = these_PK.float().mean()
        metrics[f"reward_by_steps/{num_steps}"] = quality_PK[these_PK].mean()
    return metrics
