"""emoji-judge: the reader of Emoji that evaluation reports, never trained against."""

from swiftmask.recipes.emoji import JUDGE, emoji_reader
from swiftmask.recipes.reader import ReaderRecipe


def recipe() -> ReaderRecipe:
    """`swiftmask train emoji-judge`, after `emoji-tokenizer`: of another architecture than the reward."""
    return emoji_reader(JUDGE, "transformer", "base", num_steps=2200, seed=11)
