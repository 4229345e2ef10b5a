"""dimoo-emoji: a text-to-image Lumina-DiMOO of Emoji."""

from swiftmask.models.lumina_dimoo.training import Sizes
from swiftmask.recipes.base_model import BaseModelRecipe
from swiftmask.recipes.emoji import emoji_model


def recipe() -> BaseModelRecipe:
    """`swiftmask train dimoo-emoji`, after `emoji-tokenizer`."""
    network = Sizes(width=160, num_heads=5, mlp_width=448)
    return emoji_model("dimoo-emoji", "lumina_dimoo", num_steps=12_000, batch_size=16, network=network)
