"""The shortcut of dimoo-scenes: its base is the bundled model, or the one a run of its recipe left."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from swiftmask.methods.shortcut import RotaryShortcut, RotaryShortcutConfig, write_shortcut
from swiftmask.methods.shortcut.rounds import RoundsConfig, TeacherRounds
from swiftmask.methods.shortcut.training import ShortcutTrainer, train_step
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.recipes.captioned_scenes import PROMPT_SEED, World
from swiftmask.recipes.provenance import provenance
from swiftmask.recipes.runs import require_model, run_name, training_device
from swiftmask.registry import WEIGHTS
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryShortcutRecipe:
    """Sizes and optimisation of the shortcut.

    Attributes:
        world: what the teacher draws; the one it was trained on.
        base: model folder of the teacher, and `base_name` what the shortcut's config calls it.
        full_steps: the budget written into its config as the default.
    """

    shortcut: RotaryShortcutConfig
    rounds: RoundsConfig
    training: TrainingConfig
    world: World = World()
    base: str = str(WEIGHTS / "dimoo-scenes")
    base_name: str = "dimoo-scenes"
    full_steps: int = 6
    name: str = "dimoo-scenes-shortcut"

    def run(self, folder: Path, on_log: Callable[[Progress], None] | None = None) -> Path:
        """Train, or continue, in `folder`; returns `folder/model`, ready for `accelerate(shortcut=...)`.

        Errors: FileNotFoundError if there is no base.
        """
        self.rounds.check(self.training)
        source, device = (
            require_model(self.base, setting="base", trained_by="dimoo-scenes"),
            training_device(),
        )
        teacher = LuminaDiMOO.from_pretrained(source, dtype=torch.bfloat16, device=device)
        head = LuminaDiMOO.from_pretrained(source, device=device).requires_grad_(False)
        torch.manual_seed(self.training.seed)
        shortcut = RotaryShortcut(self.shortcut).start_as_copy()
        rounds = TeacherRounds(teacher.requires_grad_(False), self.rounds, self.prompts, shortcut)
        trained = train(
            ShortcutTrainer(shortcut, head, self.rounds),
            rounds.batch,
            train_step,
            self.training,
            folder,
            name=run_name(self.name, head, self.rounds, self.world),
            on_log=on_log,
        )
        write_shortcut(
            folder / "model",
            trained.shortcut.eval(),
            base=teacher.spec,
            base_name=self.base_name,
            full_steps=self.full_steps,
            provenance=provenance(self.name, self.training, rounds=asdict(self.rounds)),
            dtype=torch.float16,
        )
        return folder / "model"

    def prompts(self, number: int, count: int) -> list[str]:
        """Captions of a round, of pictures that the base was not trained on."""
        return self.world.captions(PROMPT_SEED + number * count + torch.arange(count))


def recipe() -> RotaryShortcutRecipe:
    """`swiftmask train dimoo-scenes-shortcut`: an eighth of the backbone's parameters, for two CPU cores.

    Its one run does worse than feature reuse (docs/log.md), so nothing is bundled: sizes, rates and rounds
    are still those of maskgit-scenes-shortcut.
    """
    return RotaryShortcutRecipe(
        shortcut=RotaryShortcutConfig(
            width=192,
            bottleneck_width=96,
            num_heads=3,
            mlp_width=256,
            num_blocks=1,
            rope_theta=1000.0,
        ),
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
