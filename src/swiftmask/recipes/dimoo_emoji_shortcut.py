"""dimoo-emoji-shortcut: the shortcut of dimoo-emoji."""

from dataclasses import replace

from swiftmask.recipes import shortcut
from swiftmask.recipes.emoji import DATA, made
from swiftmask.recipes.shortcut import ShortcutRecipe


def recipe() -> ShortcutRecipe:
    """`swiftmask train dimoo-emoji-shortcut`, after `dimoo-emoji`."""
    base = shortcut.recipe()
    return replace(base, name="dimoo-emoji-shortcut", model=made("dimoo-emoji"), data=DATA)
