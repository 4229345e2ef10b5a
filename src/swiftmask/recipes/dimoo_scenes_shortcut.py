"""The shortcut of dimoo-scenes: its base is the bundled model, or the one a run of its recipe left."""

from swiftmask.methods.shortcut import RotaryShortcutConfig
from swiftmask.methods.shortcut.rounds import RoundsConfig
from swiftmask.recipes.shortcut_scenes import SceneShortcutRecipe
from swiftmask.registry import WEIGHTS
from swiftmask.training.setup import TrainingConfig


def recipe() -> SceneShortcutRecipe:
    """`swiftmask train dimoo-scenes-shortcut`: an eighth of the backbone's parameters, 23 minutes on one CPU
    core (2026-11-22).

    It trains on canvases that it filled itself, which its pictures are better for (docs/log.md).
    """
    return SceneShortcutRecipe(
        name="dimoo-scenes-shortcut",
        base=str(WEIGHTS / "dimoo-scenes"),
        shortcut=RotaryShortcutConfig(
            width=192,
            bottleneck_width=96,
            num_heads=3,
            mlp_width=256,
            num_blocks=1,
            rope_theta=1000.0,
        ),
        rounds=RoundsConfig(
            updates_per_round=40, step_counts=(8, 12, 16, 24, 32), token_weight=1.0, on_policy=True
        ),
        training=TrainingConfig(
            num_steps=1600,
            batch_size=64,
            learning_rate=2e-3,
            muon_learning_rate=2e-3,
            warmup_steps=50,
            ema_decay=0.995,
            betas=(0.9, 0.99),
            save_every=120,
        ),
    )
