"""speed-rl: any model that scores its tokens, tuned for few decode steps (Speed-RL, arXiv 2512.01094).

A run leaves `policy`, what was trained and nothing else, to go with its base; and a whole model beside it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.ranges import check_fields
from swiftmask.data.sources import DataConfig
from swiftmask.methods.speed_rl import (
    Judge,
    Prompts,
    Reward,
    Rounds,
    Scorers,
    SpeedRLConfig,
    SpeedRLTrainer,
    TuningConfig,
    merged,
    write_policy,
)
from swiftmask.methods.speed_rl.policy import require_log_prob
from swiftmask.methods.speed_rl.rollouts import as_planned
from swiftmask.pipeline import Pipeline
from swiftmask.recipes.conditions import Start
from swiftmask.recipes.held_out import keep_best, mean_scores, spread
from swiftmask.recipes.provenance import provenance, write_notice
from swiftmask.recipes.runs import OnLog, run_name, training_device
from swiftmask.recipes.speed_rl_sheets import SheetConfig, Sheets, tracked
from swiftmask.rewards.named import Entry, entries, label_of, load_for
from swiftmask.training.loop import Progress, train
from swiftmask.training.processes import processes
from swiftmask.training.setup import TrainingConfig, train_step


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRLRecipe:
    """Base model, rewards, objective and optimisation.

    Attributes:
        model, codec, text_encoder, prompts, data, source: base model and what it generates for
            (recipes/conditions.py).
        reward: what is trained on, by name and with weights (rewards/named.py), as in
            "pickscore,hps=HPS_v2.1_compressed.pt:0.5".
        held_out: what is only logged beside them; at least one. The first decides which checkpoint is the
            best.
        judged: images that are scored at every checkpoint, at `steps` decode steps.
        steps: decode steps that are wanted; None is a third of the base's own. The images of a group take one
            step fewer, as many, and one more, unless `speed_rl.step_counts` says otherwise: a speed reward
            needs images that differ in their steps.
        num_captions: of a base that generates for captions of Scenes.
        sheets: sample images while it trains.
    """

    speed_rl: SpeedRLConfig
    training: TrainingConfig
    model: str = ""
    codec: str = ""
    text_encoder: str = ""
    prompts: str = ""
    data: str = ""
    source: DataConfig = DataConfig()
    reward: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    judged: int = 32
    steps: int | None = None
    num_captions: int = 4096
    sheets: SheetConfig = SheetConfig()
    name: str = "speed-rl"

    def __post_init__(self) -> None:
        check_fields(self)
        self.sheets.check(self.training)
        for text in (*self.reward, *self.held_out):
            Entry.parsed(text)

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, ready for `swiftmask.load`. Beside it is
        `folder/policy`, for `swiftmask.accelerate(base, speed_rl=folder)`. `folder/best` holds both of the
        checkpoint with the best held-out score.

        Errors: ValueError or FileNotFoundError for a model, prompts, rewards or settings that do not go
            together, before the model is read where that is possible.
        """
        start, named = Start.of(self), self.entries()
        base = start.read()
        require_log_prob(base.model.spec)
        base.model.to(training_device())  # type: ignore[attr-defined]
        prompts = Prompts(start.conditions(base.model).listed(self.num_captions))
        scorers = self.scorers(base.model, prompts, *named, asked=start.asked)
        steps, config = self.planned(base.model)
        written = _Written(self, start, base, config, steps, folder)
        policy = self._tune(written, prompts, scorers, folder, on_log)
        written.policy(policy, folder / "policy")
        written.model(policy, folder / "model")
        return folder / "model"

    def planned(self, model: Any) -> tuple[int, SpeedRLConfig]:
        """The wanted number of decode steps, and the config with the step counts of a group."""
        most = model.spec.num_tokens
        steps = self.steps or max(1, round(min(model.steps, most) / 3))
        around = {max(1, steps - 1), steps, min(steps + 1, most)}
        counts = self.speed_rl.step_counts or tuple(sorted(around))
        return steps, replace(self.speed_rl, step_counts=counts)

    def entries(self) -> tuple[list[Entry], list[Entry]]:
        """Rewards and judges. Errors: ValueError if there are none of one kind, or a file is missing."""
        if not self.reward:
            raise ValueError("reward is not set: add what to train on, as in reward=pickscore")
        if not self.held_out:
            raise ValueError(
                "held_out is not set: add a judge that is not trained on, as in held_out=clip (a reward that "
                "rises while nothing else is watched says little)"
            )
        return entries(self.reward), entries(self.held_out)

    def scorers(
        self,
        model: Any,
        prompts: Prompts,
        rewards: list[Entry],
        judges: list[Entry],
        *,
        asked: Mapping[str, Mapping[str, str]],
    ) -> Scorers:
        """Loaded, on the device of the training.

        Args:
            asked: what the image of each prompt is to show, by column.

        Errors: ValueError for a prompt that a reader does not understand.
        """
        device = training_device()
        names = model.class_names if model.spec.draws == "class" else None

        def loaded(entry: Entry) -> Any:
            return load_for(entry, prompts.what, names, asked=asked, device=device)

        return Scorers(
            [Reward(label_of(entry), loaded(entry), entry.weight) for entry in rewards],
            [Judge(label_of(entry), loaded(entry)) for entry in judges],
        )

    def _tune(
        self, written: "_Written", prompts: Prompts, scorers: Scorers, folder: Path, on_log: OnLog | None
    ) -> Any:
        """The averaged policy. Sample sheets go to `folder/samples`."""
        base: Any = written.base.model
        config = written.config
        trainer = SpeedRLTrainer(base, config)
        rounds = Rounds(trainer, prompts, scorers, self.training)
        name = run_name(self.name, base, config, self.reward, self.held_out, *prompts.what)
        torch.manual_seed(self.training.seed)
        judged = prompts.at(spread(self.judged, len(prompts.what)))
        with tracked(self.training, folder, name) as trackers:
            samples = Sheets(self.sheets, prompts, config.sampling, folder / "samples", trackers)
            if processes().is_main_process:
                samples.first(base)

            def log(progress: Progress) -> None:
                trackers.log(progress)
                if on_log is not None:
                    on_log(progress)

            def look(step: int, average: Any) -> None:
                samples(step, average)
                drawn = _drawn(average.policy, judged, written.steps, config)
                measured = mean_scores((*scorers.judges, *scorers.rewards), drawn)
                keep_best(folder, step, measured, partial(written.best, average.policy))

            untracked = replace(self.training, report_to=())
            trained = train(
                trainer, rounds.batch, train_step, untracked, folder, name=name, on_log=log, on_save=look
            )
        return trained.policy


@torch.no_grad()
def _drawn(
    policy: MaskedGenerator, judged: Prompts, steps: int, config: SpeedRLConfig
) -> Iterator[tuple[Tensor, Prompts]]:
    """Images of some prompts, with seeds from 0, a forward's at a time."""
    plan = policy.schedule(steps, num_masked=policy.spec.num_tokens, options=config.sampling)
    for rows in torch.arange(len(judged.what)).split(config.images_per_forward):
        shown = judged.at(rows.tolist())
        tokens_BL = as_planned(policy, shown.what, rows.tolist(), plan).tokens_BL
        yield policy.to_pixels(tokens_BL).float(), shown


@dataclass(frozen=True, slots=True)
class _Written:
    """What the folders of a run say beside their weights."""

    recipe: SpeedRLRecipe
    start: Start
    base: Pipeline
    config: SpeedRLConfig
    steps: int
    run: Path

    def best(self, policy: Any, folder: Path, facts: dict[str, object]) -> None:
        """A model, and the policy in a folder inside."""
        self.policy(policy, folder / "policy", **facts)
        self.model(policy, folder, **facts)

    def policy(self, policy: Any, folder: Path, **facts: object) -> None:
        """What was trained, to go with the base."""
        write_policy(
            folder,
            policy,
            tuning=self.config.tuning,
            provenance=self._provenance(facts),
            base_name=self.base.name,
            steps=self.steps,
            sampling=self.config.sampling,
            dtype=torch.float16,
        )
        write_notice(folder, self.start.notice)

    def model(self, policy: Any, folder: Path, **facts: object) -> None:
        """A whole model."""
        tuned: Any = merged(policy)
        tuned.sampling, tuned.steps = self.config.sampling.over(tuned.sampling), self.steps
        tuned.save_pretrained(folder, provenance=self._provenance(facts), dtype=torch.float16)
        write_notice(folder, self.start.notice)

    def _provenance(self, more: dict[str, object]) -> dict[str, object]:
        recipe, world = self.recipe, self.start.world
        facts: dict[str, object] = {
            "data": self.start.conditions(self.base.model).name,
            "reward": recipe.reward,
            "held_out": recipe.held_out,
            "speed_rl": asdict(self.config),
            "base": self.base.name,
            "steps": self.steps,
        }
        if world is not None:
            facts["world"] = asdict(world)  # what the tuned model is asked, whatever it learned from
        return provenance(recipe.name, recipe.training, self.run, **facts, **more)


def first_guesses(config: SpeedRLConfig) -> TrainingConfig:
    """Optimisation of a small model, all of whose weights are trained; nothing here has been swept."""
    return TrainingConfig(
        num_steps=160 * config.updates_per_round,
        batch_size=config.generation_batch_size // config.steps_per_generation,
        learning_rate=1.5e-4,
        betas=(0.9, 0.99),
        warmup_steps=5,
        ema_decay=0.98,
        precision="no",
        save_every=10,
        log_every=1,
    )


def recipe() -> SpeedRLRecipe:
    """`swiftmask train speed-rl model=PATH prompts=prompts.txt reward=pickscore held_out=clip`.

    Adapters (LoRA) on the blocks that repeat; `speed_rl.tuning.method=full` trains these whole.
    """
    speed_rl = SpeedRLConfig(tuning=TuningConfig())
    return SpeedRLRecipe(speed_rl=speed_rl, training=first_guesses(speed_rl))


def scenes_preset(name: str, *, targets: str) -> SpeedRLRecipe:
    """A bundled model of about 16 steps tuned for 5: groups of eight images at 4 to 6 steps, the readers of
    Scenes as reward and judge, the parameters of `targets` trained whole.
    """
    speed_rl = SpeedRLConfig(
        tuning=TuningConfig(method="full", targets=targets),
        images_per_forward=64,
        activations="kept",
    )
    return SpeedRLRecipe(
        name=name,
        model=name.removesuffix("-speed-rl"),
        reward=("scenes-reward",),
        held_out=("scenes-judge",),
        steps=5,
        speed_rl=speed_rl,
        training=replace(first_guesses(speed_rl), precision="bf16"),
    )
