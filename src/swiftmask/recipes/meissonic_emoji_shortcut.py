"""meissonic-emoji-shortcut: the shortcut of meissonic-emoji."""

from dataclasses import replace

from swiftmask.recipes import shortcut
from swiftmask.recipes.emoji import DATA, made
from swiftmask.recipes.shortcut import ShortcutRecipe


def recipe() -> ShortcutRecipe:
    """`swiftmask train meissonic-emoji-shortcut`, after `meissonic-emoji`."""
    base = shortcut.recipe()
    return replace(base, name="meissonic-emoji-shortcut", model=made("meissonic-emoji"), data=DATA)
