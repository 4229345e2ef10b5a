"""The shortcut of maskgit-scenes: its base is the bundled model, or the one a run of its recipe left."""

from swiftmask.methods.shortcut import ShortcutConfig
from swiftmask.methods.shortcut.rounds import RoundsConfig
from swiftmask.recipes.shortcut_scenes import SceneShortcutRecipe
from swiftmask.registry import WEIGHTS
from swiftmask.training.setup import TrainingConfig


def recipe() -> SceneShortcutRecipe:
    """`swiftmask train maskgit-scenes-shortcut`: 18 minutes on two CPU cores (2026-11-21).

    Measured quality in benchmarks/results.
    """
    return SceneShortcutRecipe(
        name="maskgit-scenes-shortcut",
        base=str(WEIGHTS / "maskgit-scenes"),
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
