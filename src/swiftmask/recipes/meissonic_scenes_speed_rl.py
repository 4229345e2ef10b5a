"""meissonic-scenes-speed-rl: meissonic-scenes tuned to draw in 5 steps what takes it 16 (Speed-RL, arXiv
2512.01094). Its base is the bundled model, or the one a run of its recipe left.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from swiftmask.methods.speed_rl import Prompts, SpeedRLConfig
from swiftmask.models.meissonic import Meissonic
from swiftmask.recipes.captioned_scenes import PROMPT_SEED, World
from swiftmask.recipes.marval_distillation import OnLog, training_device
from swiftmask.recipes.provenance import provenance
from swiftmask.recipes.speed_rl_scenes import (
    STEPS,
    Readers,
    Task,
    few_steps,
    first_guesses,
    require_base,
    run_name,
    tune,
    write_results,
)
from swiftmask.recipes.speed_rl_sheets import SheetConfig
from swiftmask.registry import WEIGHTS
from swiftmask.rewards.scenes import caption_reward
from swiftmask.training.setup import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class MeissonicSpeedRLRecipe:
    """Objective, judges, prompts and optimisation.

    Attributes:
        world: what prompts ask for; the one the base was trained on.
        num_captions: captions drawn; those that say the same are one prompt.
        base: model folder of the model that is tuned.
        sheets: sample pictures while it trains.
    """

    speed_rl: SpeedRLConfig
    training: TrainingConfig
    readers: Readers = Readers()
    sheets: SheetConfig = SheetConfig()
    world: World = World()
    num_captions: int = 4096
    base: str = str(WEIGHTS / "meissonic-scenes")
    name: str = "meissonic-scenes-speed-rl"

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, ready for `swiftmask.load`. Beside it lies
        `folder/policy`, for `swiftmask.accelerate(base, speed_rl=folder)`.
        """
        base = Meissonic.from_pretrained(require_base(self.base, trained_by="meissonic-scenes"))
        policy = tune(
            base.to(training_device()),
            Task(self.prompts(), self.readers.judges(caption_reward), self.sheets),
            self.speed_rl,
            self.training,
            folder,
            name=run_name(self.name, base, self.speed_rl, self.readers, self.world, self.num_captions),
            on_log=on_log,
        )
        facts = {"speed_rl": asdict(self.speed_rl), "world": asdict(self.world), "base": Path(self.base).name}
        made_by = provenance(self.name, self.training, **facts, steps=STEPS)
        tuned = write_results(policy, self.speed_rl, folder, base="meissonic-scenes", provenance=made_by)
        assert isinstance(tuned, Meissonic)
        tuned.save_pretrained(folder / "model", provenance=made_by, dtype=torch.float16)
        return folder / "model"

    def prompts(self) -> Prompts:
        """Captions of pictures that the base was not trained on."""
        seeds_B = PROMPT_SEED + torch.arange(self.num_captions)
        return Prompts(list(dict.fromkeys(self.world.captions(seeds_B))))


def recipe() -> MeissonicSpeedRLRecipe:
    """`swiftmask train meissonic-scenes-speed-rl`: 160 rounds of 64 pictures on two CPU cores; the text
    encoder stays as it is, and what reads the micro-conditions, which never change here
    (`ignore_micro_conditions`).

    No run of it has gained anything yet (docs/log.md): rates, length and the size of rounds are guesses.
    """
    speed_rl = few_steps(targets=r"transformer\.(?!cond_embed\.).*")
    return MeissonicSpeedRLRecipe(speed_rl=speed_rl, training=first_guesses(speed_rl))
