"""meissonic-emoji: a text-to-image Meissonic of Emoji."""

from swiftmask.models.meissonic.training import Sizes
from swiftmask.recipes.base_model import BaseModelRecipe
from swiftmask.recipes.emoji import emoji_model


def recipe() -> BaseModelRecipe:
    """`swiftmask train meissonic-emoji`, after `emoji-tokenizer`. Its blocks run on 8x8 tokens."""
    network = Sizes(num_double_blocks=1, num_single_blocks=5)
    return emoji_model("meissonic-emoji", "meissonic", num_steps=20_000, batch_size=32, network=network)
