"""maskgit-scenes-shortcut: the shortcut of the bundled maskgit-scenes."""

from dataclasses import replace

from swiftmask.methods.shortcut.rounds import RoundsConfig
from swiftmask.recipes import shortcut
from swiftmask.recipes.shortcut import ShortcutRecipe


def recipe() -> ShortcutRecipe:
    """`swiftmask train maskgit-scenes-shortcut`: 18 minutes on two CPU cores (2026-11-21).

    Measured quality in benchmarks/results.
    """
    rounds = RoundsConfig(updates_per_round=40, token_weight=0.5)
    training = replace(shortcut.recipe().training, precision="bf16")
    return shortcut.preset("maskgit-scenes-shortcut", rounds, training)
