"""maskgit-scenes-speed-rl: maskgit-scenes tuned to draw in 5 steps what takes it 16 (Speed-RL, arXiv
2512.01094). Its base is the bundled model, or the one a run of its recipe left.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.data.scenes import NUM_CLASSES
from swiftmask.methods.speed_rl import Prompts, SpeedRLConfig
from swiftmask.models.maskgit import MaskGIT
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
from swiftmask.rewards.scenes import SceneReader, class_reward
from swiftmask.training.setup import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskGITSpeedRLRecipe:
    """Objective, judges and optimisation.

    Attributes:
        base: model folder of the model that is tuned.
        sheets: sample pictures while it trains.
    """

    speed_rl: SpeedRLConfig
    training: TrainingConfig
    readers: Readers = Readers()
    sheets: SheetConfig = SheetConfig()
    base: str = str(WEIGHTS / "maskgit-scenes")
    name: str = "maskgit-scenes-speed-rl"

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, ready for `swiftmask.load`. Beside it lies
        `folder/policy`, for `swiftmask.accelerate(base, speed_rl=folder)`.
        """
        base = MaskGIT.from_pretrained(require_base(self.base, trained_by="maskgit-scenes"))
        policy = tune(
            base.to(training_device()),
            Task(Prompts(range(NUM_CLASSES)), self.readers.judges(classes_scored_by), self.sheets),
            self.speed_rl,
            self.training,
            folder,
            name=run_name(self.name, base, self.speed_rl, self.readers),
            on_log=on_log,
        )
        facts = {"speed_rl": asdict(self.speed_rl), "base": Path(self.base).name, "steps": STEPS}
        made_by = provenance(self.name, self.training, **facts)
        tuned = write_results(policy, self.speed_rl, folder, base="maskgit-scenes", provenance=made_by)
        assert isinstance(tuned, MaskGIT)
        tuned.save_pretrained(folder / "model", provenance=made_by, dtype=torch.float16)
        return folder / "model"


def classes_scored_by(reader: SceneReader) -> Callable[[Tensor, Sequence[int]], Tensor]:
    """Share of a class's facts that the reader finds in each picture."""
    reward = class_reward(reader)
    return lambda images_B3HW, labels: reward(images_B3HW, torch.tensor(labels))


def recipe() -> MaskGITSpeedRLRecipe:
    """`swiftmask train maskgit-scenes-speed-rl`: 160 rounds of 64 pictures on two CPU cores.

    Not run to its end yet: rates, length and the weight of the speed reward are first guesses.
    """
    speed_rl = few_steps(targets=r"transformer\..*")
    return MaskGITSpeedRLRecipe(speed_rl=speed_rl, training=first_guesses(speed_rl))
