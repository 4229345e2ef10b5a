"""mar-emoji: a class-conditional MAR of Emoji on 8x8 continuous tokens."""

from swiftmask.core.protocol import SamplingOptions
from swiftmask.models.mar.training import Sizes
from swiftmask.recipes.base_model import BaseModelRecipe, SampleConfig
from swiftmask.recipes.emoji import CODEC, PAIRS, emoji_model, made


def recipe() -> BaseModelRecipe:
    """`swiftmask train mar-emoji`, after `emoji-codec`. Classes are sums, as in maskgit-emoji.

    The bundled weights had as many updates, in three runs (docs/log.md).
    """
    return emoji_model(
        "mar-emoji",
        "mar",
        num_steps=14_200,
        batch_size=32,
        tokenizer=made(CODEC),
        source=PAIRS,
        network=Sizes(decoder_depth=3, composed_classes=True),
        sampling=SamplingOptions(guidance=3.0),
        samples=SampleConfig(number=8, steps=8),
    )
