"""emoji-codec: Gaussian latents of Emoji images, 16x16 of four channels, for MAR."""

from swiftmask.recipes.emoji import emoji_tokenizer
from swiftmask.recipes.tokenizer import TokenizerRecipe


def recipe() -> TokenizerRecipe:
    """`swiftmask train emoji-codec`, after `swiftmask data emoji --out runs/emoji`."""
    return emoji_tokenizer("emoji-codec", "kl")
