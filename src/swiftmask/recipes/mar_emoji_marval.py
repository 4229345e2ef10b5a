"""mar-emoji-marval: the student of mar-emoji."""

from dataclasses import replace

from swiftmask.recipes import marval
from swiftmask.recipes.emoji import DATA, PAIRS, made
from swiftmask.recipes.marval import MarvalRecipe


def recipe() -> MarvalRecipe:
    """`swiftmask train mar-emoji-marval`, after `mar-emoji`."""
    return replace(marval.recipe(), name="mar-emoji-marval", model=made("mar-emoji"), data=DATA, source=PAIRS)
