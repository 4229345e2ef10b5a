"""mar-scenes: a small class-conditional MAR of Scenes on 6x6 continuous tokens, with its tokenizer."""

from swiftmask.recipes.base_model import BaseModelRecipe, SampleConfig
from swiftmask.recipes.scenes import scenes_recipe


def recipe() -> BaseModelRecipe:
    """`swiftmask train mar-scenes`: about two hours on one CPU core. Measured quality in docs/marval.md.

    A token is a patch of 2x2 latents: on a CPU four times as many images pass through the network as with
    12x12 tokens, and 16 channels give the diffusion head more to do. The bundled weights' codec reads and
    writes 64x64 images at 48x48; today's model generates 48x48 pixels.
    """
    return scenes_recipe(
        "mar",
        "scenes:classes",
        num_steps=8000,
        learning_rate=2e-3,
        samples=SampleConfig(number=4, steps=4),
        name="mar-scenes",
    )
