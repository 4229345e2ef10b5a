"""emoji-reward: the reader of Emoji that models may be trained against."""

from swiftmask.recipes.emoji import REWARD, emoji_reader
from swiftmask.recipes.reader import ReaderRecipe


def recipe() -> ReaderRecipe:
    """`swiftmask train emoji-reward`, after `emoji-tokenizer`."""
    return emoji_reader(REWARD, "conv", "base", num_steps=1800, seed=23)
