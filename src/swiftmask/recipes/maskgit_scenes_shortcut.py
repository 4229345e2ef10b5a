"""The shortcut of maskgit-scenes: its teacher is the bundled model, or the one a run of its recipe left."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from swiftmask.data.scenes import NUM_CLASSES
from swiftmask.methods.shortcut import Shortcut, ShortcutConfig, write_shortcut
from swiftmask.methods.shortcut.rounds import RoundsConfig, TeacherRounds
from swiftmask.methods.shortcut.training import ShortcutTrainer, train_step
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
    full_steps: int = 6
    name: str = "maskgit-scenes-shortcut"

    def run(self, folder: Path, on_log: Callable[[Progress], None] | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, ready for `accelerate(shortcut=...)`."""
        self.rounds.check(self.training)
        teacher = MaskGIT.from_pretrained(self.teacher).requires_grad_(False)
        torch.manual_seed(self.training.seed)
        head = MaskGIT.from_pretrained(self.teacher).requires_grad_(False)
        shortcut = Shortcut(self.shortcut).start_as_copy().fit_to_embeddings(_embeddings(head))
        rounds = TeacherRounds(teacher.to(dtype=torch.bfloat16), self.rounds, self.labels, shortcut)
        trained = train(
            ShortcutTrainer(shortcut, head, self.rounds),
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


def _embeddings(teacher: MaskGIT) -> torch.Tensor:
    """Every code at every position: [L, V, D]."""
    codes_LV = torch.arange(teacher.transformer.config.codebook_size).expand(teacher.spec.num_tokens, -1)
    positions_LV = torch.arange(teacher.spec.num_tokens)[:, None].expand_as(codes_LV)
    return teacher.embed(codes_LV, positions_LV)


def recipe() -> ShortcutRecipe:
    """`swiftmask train maskgit-scenes-shortcut`: 18 minutes on two CPU cores (2026-11-21).

    Measured quality in benchmarks/results.
    """
    return ShortcutRecipe(
        shortcut=ShortcutConfig(width=160, bottleneck_width=80, num_blocks=1, num_heads=5),
        rounds=RoundsConfig(updates_per_round=40, step_counts=(8, 12, 16, 24, 32), token_weight=0.5),
        training=TrainingConfig(
            num_steps=1500,
            batch_size=64,
            learning_rate=4e-3,
            muon_learning_rate=4e-3,
            warmup_steps=50,
            ema_decay=0.995,
            betas=(0.9, 0.99),
            save_every=100,
        ),
    )
