"""emoji-tokenizer: codes of Emoji images, 16x16."""

from swiftmask.recipes.emoji import emoji_tokenizer
from swiftmask.recipes.tokenizer import TokenizerRecipe


def recipe() -> TokenizerRecipe:
    """`swiftmask train emoji-tokenizer`, after `swiftmask data emoji --out runs/emoji`."""
    return emoji_tokenizer("emoji-tokenizer", "vq")
