"""meissonic-scenes: a small text-to-image Meissonic of Scenes on 12x12 tokens, with its tokenizer."""

from swiftmask.recipes.base_model import BaseModelRecipe
from swiftmask.recipes.scenes import scenes_recipe


def recipe() -> BaseModelRecipe:
    """`swiftmask train meissonic-scenes`: about two hours on one CPU core.

    Captions are those of one to three objects on a plain background (`source.world.simple_percent=0` is the
    whole of Scenes); blocks run on 6x6 tokens. What was tried is in docs/log.md, measured quality in
    docs/speed_rl.md.
    """
    return scenes_recipe(
        "meissonic", "scenes:captions", num_steps=6000, learning_rate=3e-3, name="meissonic-scenes"
    )
