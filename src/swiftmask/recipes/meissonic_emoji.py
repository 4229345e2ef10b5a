"""meissonic-emoji: a text-to-image Meissonic of Emoji."""

from swiftmask.core.protocol import SamplingOptions
from swiftmask.models.meissonic.training import Sizes
from swiftmask.recipes.base_model import BaseModelRecipe, SampleConfig
from swiftmask.recipes.emoji import emoji_model


def recipe() -> BaseModelRecipe:
    """`swiftmask train meissonic-emoji`, after `emoji-tokenizer`. Its blocks run on 8x8 tokens.

    The bundled weights had as many updates, in five runs (docs/log.md).
    """
    return emoji_model(
        "meissonic-emoji",
        "meissonic",
        num_steps=26_000,
        batch_size=32,
        network=Sizes(num_double_blocks=1, num_single_blocks=5, text_width=112, text_depth=1, text_heads=4),
        sampling=SamplingOptions(guidance=2.0, temperature=0.9, choice_temperature=4.0),
        samples=SampleConfig(number=16),
    )
