"""Speed-RL (arXiv 2512.01094) on Scenes, for any model that scores its tokens: settings for about 16 steps
made 5, two judges, the run and what it leaves: `policy`, what was trained and nothing else, to go with its
base; and a whole model beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swiftmask.core.ranges import check_fields
from swiftmask.data.prompts import read_prompts
from swiftmask.data.scenes import NUM_CLASSES, parse_captions
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
from swiftmask.recipes.captioned_scenes import PROMPT_SEED, World
from swiftmask.recipes.hard_captions import Trial, hardest
from swiftmask.recipes.provenance import provenance
from swiftmask.recipes.runs import OnLog, fingerprint, require_model, run_name, training_device
from swiftmask.recipes.speed_rl_sheets import SheetConfig, Sheets, tracked
from swiftmask.registry import WEIGHTS, describe, generator_class
from swiftmask.rewards.scenes import NetworkReader, SceneReader, caption_reward, class_reward, load_reader
from swiftmask.training.loop import Progress, train
from swiftmask.training.processes import processes
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
        reward, judge = (scoring(reader) for reader in self._read(training_device()))
        return Judges([Judge("scenes-reward", reward), Judge("scenes-judge", judge, weight=0.0)])

    def fingerprints(self) -> list[str]:
        """Of their weights, wherever the folders lie."""
        return [fingerprint(reader) for reader in self._read(torch.device("cpu"))]

    def _read(self, device: torch.device) -> list[NetworkReader]:
        return [load_reader(folder, device) for folder in (self.reward, self.judge)]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneSpeedRLRecipe:
    """Objective, judges, prompts and optimisation.

    Attributes:
        name: the base's, and "-speed-rl".
        base: model folder of the model that is tuned.
        sheets: sample pictures while it trains.
        world: what prompts ask for; the one the base was trained on.
        num_captions: captions drawn, of a base that draws captions; those that say the same are one prompt.
        prompt_file: captions instead of drawn ones, one a line.
        hardest: share of the prompts that is kept, those that the base fails at most; 1 keeps all, and
            scores none.
        scored: pictures of each prompt that tell.

    Errors: ValueError for a share or a number out of range.
    """

    name: str
    base: str
    speed_rl: SpeedRLConfig
    training: TrainingConfig
    readers: Readers = Readers()
    sheets: SheetConfig = SheetConfig()
    world: World = World()
    num_captions: int = 4096
    prompt_file: str = ""
    hardest: float = 1.0
    scored: int = 4

    def __post_init__(self) -> None:
        check_fields(self)
        self.sheets.check(self.training)

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, ready for `swiftmask.load`. Beside it lies
        `folder/policy`, for `swiftmask.accelerate(base, speed_rl=folder)`.

        Errors: FileNotFoundError if there is no base. ValueError for settings that do not go together.
        """
        base = self._read_base().to(training_device())
        policy = self._tune(base, folder, on_log)
        made_by = self._provenance(base)
        write_policy(
            folder / "policy",
            policy,
            tuning=self.speed_rl.tuning,
            provenance=made_by,
            base_name=self.base_name,
            steps=STEPS,
            sampling=self.speed_rl.sampling,
            dtype=torch.float16,
        )
        tuned: Any = merged(policy)
        tuned.sampling, tuned.steps = self.speed_rl.sampling.over(tuned.sampling), STEPS
        tuned.save_pretrained(folder / "model", provenance=made_by, dtype=torch.float16)
        return folder / "model"

    @property
    def base_name(self) -> str:
        return self.name.removesuffix("-speed-rl")

    def prompts(self, draws: str) -> Prompts:
        """All classes; the captions of `prompt_file`, or those of pictures that the base was not trained on.

        Args:
            draws: of the base's spec.

        Errors: FileNotFoundError; ValueError for a file beside classes, or a caption that judges cannot read.
        """
        if draws == "class":
            if self.prompt_file:
                raise ValueError(f"{self.base_name} draws classes: leave out prompt_file")
            return Prompts(range(NUM_CLASSES))
        if self.prompt_file:
            listed = read_prompts(self.prompt_file)
            if used := [prompt.line for prompt in listed if prompt.negative or prompt.seed is not None]:
                raise ValueError(
                    f"{self.prompt_file}, line {used[0]}: training draws its own seeds and has no negative "
                    "prompts: leave out the columns negative_prompt and seed"
                )
            texts = [prompt.text for prompt in listed]
            parse_captions(texts)  # what judges cannot read is said before anything is drawn
            return Prompts(texts)
        seeds_B = PROMPT_SEED + torch.arange(self.num_captions)
        return Prompts(list(dict.fromkeys(self.world.captions(seeds_B))))

    def _read_base(self) -> Any:
        folder = require_model(self.base, setting="base", trained_by=self.base_name)
        return generator_class(describe(folder).family).from_pretrained(folder)

    def _tune(self, base: Any, folder: Path, on_log: OnLog | None) -> Any:
        """The averaged policy. Sample sheets go to `folder/samples`."""
        trainer = SpeedRLTrainer(base, self.speed_rl)
        judges = self.readers.judges(SCORINGS[base.spec.draws])
        prompts = self._hardest(base, self.prompts(base.spec.draws), judges, folder)
        rounds = Rounds(trainer, prompts, judges, self.training)
        asked = prompts.what if self._is_listed else (self.world, self.num_captions)
        settings = (self.speed_rl, self.readers.fingerprints(), *asked)
        name = run_name(self.name, base, *settings)
        torch.manual_seed(self.training.seed)
        with tracked(self.training, folder, name) as trackers:
            samples = Sheets(self.sheets, prompts, self.speed_rl.sampling, folder / "samples", trackers)
            if processes().is_main_process:
                samples.first(base)

            def log(progress: Progress) -> None:
                trackers.log(progress)
                if on_log is not None:
                    on_log(progress)

            untracked = replace(self.training, report_to=())
            trained = train(
                trainer, rounds.batch, train_step, untracked, folder, name=name, on_log=log, on_save=samples
            )
        return trained.policy

    @property
    def _is_listed(self) -> bool:
        """Whether what a world draws does not tell what is shown."""
        return bool(self.prompt_file) or self.hardest < 1

    def _hardest(self, base: Any, prompts: Prompts, judges: Judges, folder: Path) -> Prompts:
        """Those that are learned from. The main process scores them, the others read what it wrote."""
        if self.hardest == 1:
            return prompts
        config = self.speed_rl
        trial = Trial(base, judges, config, num_steps=STEPS, num_pictures=self.scored)
        asked = (self.readers.fingerprints(), config.sampling, config.seed, prompts.what, self.scored)
        file = folder / f"{run_name('scored', base, *asked)}.jsonl"
        with processes().main_process_first():
            return hardest(prompts, self.hardest, score=trial, file=file)

    def _provenance(self, base: Any) -> dict[str, object]:
        facts = {"speed_rl": asdict(self.speed_rl), "base": Path(self.base).name, "steps": STEPS}
        if base.spec.draws == "prompt":
            facts["world"] = asdict(self.world)  # what a judge asks the tuned model, whatever it learned from
            facts["prompts"] = Path(self.prompt_file).name or "drawn"
        if self.hardest < 1:
            facts["hardest"] = self.hardest
        return provenance(self.name, self.training, **facts)


def classes_scored_by(reader: SceneReader) -> Callable[[Tensor, Sequence[int]], Tensor]:
    """Share of a class's facts that the reader finds in each picture."""
    reward = class_reward(reader)
    return lambda images_B3HW, labels: reward(images_B3HW, torch.tensor(labels))


SCORINGS: dict[str, Callable[[SceneReader], Reward]] = {"class": classes_scored_by, "prompt": caption_reward}
"""From a reader to a score of pictures, by what a base draws."""
