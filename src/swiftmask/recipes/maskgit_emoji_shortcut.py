"""maskgit-emoji-shortcut: the shortcut of maskgit-emoji."""

from dataclasses import replace

from swiftmask.recipes import shortcut
from swiftmask.recipes.emoji import made
from swiftmask.recipes.shortcut import ShortcutRecipe


def recipe() -> ShortcutRecipe:
    """`swiftmask train maskgit-emoji-shortcut`, after `maskgit-emoji`."""
    return replace(shortcut.recipe(), name="maskgit-emoji-shortcut", model=made("maskgit-emoji"))
