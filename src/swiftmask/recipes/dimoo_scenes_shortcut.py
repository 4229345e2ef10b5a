"""dimoo-scenes-shortcut: the shortcut of the bundled dimoo-scenes."""

from dataclasses import replace

from swiftmask.methods.shortcut.rounds import RoundsConfig
from swiftmask.recipes import shortcut
from swiftmask.recipes.shortcut import ShortcutRecipe


def recipe() -> ShortcutRecipe:
    """`swiftmask train dimoo-scenes-shortcut`: an eighth of the backbone's parameters, 23 minutes on one CPU
    core (2026-11-22).

    It trains on canvases that it filled itself, which its images are better for (docs/log.md).
    """
    rounds = RoundsConfig(updates_per_round=40, token_weight=1.0, on_policy=True)
    training = replace(
        shortcut.recipe().training,
        num_steps=1600,
        learning_rate=2e-3,
        muon_learning_rate=2e-3,
        precision="bf16",
        save_every=120,
    )
    return shortcut.preset("dimoo-scenes-shortcut", rounds, training)
