"""dimoo-scenes: a small text-to-image Lumina-DiMOO of Scenes on 8x8 tokens, with its tokenizer."""

from swiftmask.recipes.base_model import BaseModelRecipe
from swiftmask.recipes.scenes import scenes_recipe


def recipe() -> BaseModelRecipe:
    """`swiftmask train dimoo-scenes`: about two and a half hours on one CPU core.

    Captions are those of one to three objects on a plain background (`source.world.simple_percent=0` is the
    whole of Scenes). The bundled weights went on from those on more images (`initial`). What was tried is in
    docs/log.md, measured quality in docs/lumina_dimoo.md.
    """
    return scenes_recipe(
        "lumina_dimoo",
        "scenes:captions",
        num_steps=7200,
        learning_rate=3e-3,
        resolution=32,
        name="dimoo-scenes",
    )
