"""What the Speed-RL recipes on Scenes share: settings for about 16 steps made 5, two judges, the run and what
it leaves: `policy`, what was trained and nothing else, to go with its base; and a whole model beside it.

The training reader of Scenes is the reward; the held-out judge scores every round beside it with weight zero,
so that a reward that is gamed shows in the log while the run goes on.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState

from swiftmask.core.protocol import MaskedGenerator
from swiftmask.methods.speed_rl import (
    Judge,
    Judges,
    Prompts,
    Rounds,
    SpeedConfig,
    SpeedRLConfig,
    SpeedRLTrainer,
    TuningConfig,
    merged,
    train_step,
    write_policy,
)
from swiftmask.methods.speed_rl.judges import Reward
from swiftmask.recipes.marval_distillation import OnLog, fingerprint, training_device
from swiftmask.recipes.speed_rl_sheets import SheetConfig, Sheets, tracked
from swiftmask.registry import WEIGHTS
from swiftmask.rewards.scenes import SceneReader, load_reader
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import TrainingConfig

STEPS = 5
"""Decode steps a policy is tuned for: a third of 16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readers:
    """Folders of the two networks that read pictures.

    Attributes:
        reward: what is trained against.
        judge: what is only watched.
    """

    reward: str = str(WEIGHTS / "scenes-reward")
    judge: str = str(WEIGHTS / "scenes-judge")

    def judges(self, scoring: Callable[[SceneReader], Reward]) -> Judges:
        """Both on the device of the training.

        Args:
            scoring: from a reader to a score of pictures.
        """
        device = training_device()
        reward, judge = (scoring(load_reader(folder, device)) for folder in (self.reward, self.judge))
        return Judges([Judge("scenes-reward", reward), Judge("scenes-judge", judge, weight=0.0)])


def few_steps(*, targets: str) -> SpeedRLConfig:
    """Settings for about 16 steps made 5: groups of eight pictures at 4 to 6 steps, all parameters trained.

    The wanted number has neighbours because pictures of one group must differ in their steps for a speed
    reward to say anything; more steps than that would only cost time.

    Args:
        targets: names of the parameters that are trained.
    """
    return SpeedRLConfig(
        tuning=TuningConfig(method="full", targets=targets),
        num_generations=8,
        generation_batch_size=64,
        step_policy="stratified:4,5,6",
        speed=SpeedConfig(fastest=4, reference=STEPS, slowest=6),
        images_per_forward=64,
        activations="kept",
    )


def first_guesses(config: SpeedRLConfig) -> TrainingConfig:
    """Optimisation of a small model, all of whose weights are trained; nothing here has been swept."""
    return TrainingConfig(
        num_steps=160 * config.updates_per_round,
        batch_size=config.generation_batch_size // config.steps_per_generation,
        learning_rate=1.5e-4,
        betas=(0.9, 0.99),
        warmup_steps=5,
        ema_decay=0.98,
        precision="bf16",
        save_every=10,
        log_every=1,
    )


def require_base(folder: str | Path, *, trained_by: str) -> Path:
    """The folder, if a model is in it.

    Args:
        trained_by: the recipe that makes it, for the complaint.

    Errors: FileNotFoundError.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no base model in {folder}: train it (swiftmask train {trained_by}) and give its folder, as in "
            f"base=runs/{trained_by}/model"
        )
    return folder


@dataclass(frozen=True, slots=True)
class Task:
    """What a policy is asked to draw, who scores it, and what is shown of it meanwhile."""

    prompts: Prompts
    judges: Judges
    sheets: SheetConfig


def tune(
    base: MaskedGenerator,
    task: Task,
    config: SpeedRLConfig,
    training: TrainingConfig,
    folder: Path,
    *,
    name: str,
    on_log: OnLog | None,
) -> MaskedGenerator:
    """Train, or continue, in `folder`; returns the averaged policy. Sample sheets go to `folder/samples`.

    Args:
        base: on the device of the training; frozen.
        name: from `run_name`.

    Errors: ValueError for settings that do not go together.
    """
    task.sheets.check(training)
    trainer = SpeedRLTrainer(base, config)
    rounds = Rounds(trainer, task.prompts, task.judges, training)
    torch.manual_seed(training.seed)
    with tracked(training, folder, name) as trackers:
        samples = Sheets(task.sheets, task.prompts, config.sampling, folder / "samples", trackers)
        if PartialState().is_main_process:
            samples.first(base)

        def log(progress: Progress) -> None:
            trackers.log(progress)
            if on_log is not None:
                on_log(progress)

        untracked = replace(training, report_to=())
        trained = train(
            trainer, rounds.batch, train_step, untracked, folder, name=name, on_log=log, on_save=samples
        )
    return trained.policy.model


def write_results(
    policy: MaskedGenerator,
    config: SpeedRLConfig,
    folder: Path,
    *,
    base: str,
    provenance: Mapping[str, object],
) -> MaskedGenerator:
    """Write `folder/policy`, and give the policy as a model of the base's kind, to be written whole.

    Args:
        base: what the base is called.
    """
    write_policy(
        folder / "policy",
        policy,
        tuning=config.tuning,
        provenance=provenance,
        base_name=base,
        steps=STEPS,
        dtype=torch.float16,
    )
    return merged(policy)


def run_name(name: str, base: torch.nn.Module, *settings: object) -> str:
    """What a checkpoint is checked against beside the optimisation: the base's weights, and the settings of
    rewards, prompts and objective.
    """
    return f"{name}-{fingerprint(base)}-{zlib.crc32(repr(settings).encode()):08x}"
