"""The shortcut of maskgit-scenes: its teacher is the bundled model, or the one a run of its recipe left."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from swiftmask.data.scenes import NUM_CLASSES
from swiftmask.methods.shortcut import Shortcut, ShortcutConfig, write_shortcut
from swiftmask.methods.shortcut.training import RoundsConfig, ShortcutTrainer, TeacherRounds, train_step
from swiftmask.models.maskgit import MaskGIT
from swiftmask.recipes.provenance import provenance
from swiftmask.registry import WEIGHTS
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortcutRecipe:
    """Sizes and optimisation of the shortcut.

    Attributes:
        teacher: model folder of the base.
        base_name: what the shortcut's config calls it.
        full_steps: the budget written into its config as the default.
    """

    shortcut: ShortcutConfig
    rounds: RoundsConfig
    training: TrainingConfig
    teacher: str = str(WEIGHTS / "maskgit-scenes")
    base_name: str = "maskgit-scenes"
    full_steps: int = 4
    name: str = "maskgit-scenes-shortcut"

    def run(self, folder: Path, on_log: Callable[[Progress], None] | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, ready for `accelerate(shortcut=...)`."""
        teacher = MaskGIT.from_pretrained(self.teacher).requires_grad_(False)
        rounds = TeacherRounds(teacher.to(dtype=torch.bfloat16), self.rounds, self.labels)
        torch.manual_seed(self.training.seed)
        head = MaskGIT.from_pretrained(self.teacher).requires_grad_(False)
        trained = train(
            ShortcutTrainer(Shortcut(self.shortcut).start_as_copy(), head, self.rounds.token_weight),
            rounds.batch,
            train_step,
            self.training,
            folder,
            name=self.name,
            on_log=on_log,
        )
        write_shortcut(
            folder / "model",
            trained.shortcut.eval(),
            base=teacher.spec,
            base_name=self.base_name,
            full_steps=self.full_steps,
            provenance=provenance(self.name, self.training),
            dtype=torch.float16,
        )
        return folder / "model"

    def labels(self, number: int, count: int) -> list[int]:
        """All classes in turn, round after round."""
        return [(number * count + i) % NUM_CLASSES for i in range(count)]


def recipe() -> ShortcutRecipe:
    """`swiftmask train maskgit-scenes-shortcut`: about 20 minutes on two CPU cores."""
    return ShortcutRecipe(
        shortcut=ShortcutConfig(width=160, bottleneck_width=80, num_blocks=1, num_heads=5),
        rounds=RoundsConfig(step_counts=(8, 12, 16, 24), token_weight=0.5),
        training=TrainingConfig(
            num_steps=1500,
            batch_size=64,
            learning_rate=2e-3,
            muon_learning_rate=2e-3,
            betas=(0.9, 0.99),
            save_every=100,
        ),
    )
