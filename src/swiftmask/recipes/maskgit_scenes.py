"""maskgit-scenes: a small class-conditional MaskGIT of Scenes on 12x12 tokens, with its tokenizer."""

from swiftmask.recipes.base_model import BaseModelRecipe
from swiftmask.recipes.scenes import scenes_recipe


def recipe() -> BaseModelRecipe:
    """`swiftmask train maskgit-scenes`: about 75 minutes on two CPU cores. Measured quality in
    benchmarks/results.

    The bundled weights have a VQGAN in MaskGIT's own layout, of the same widths, which read 64x64 images at
    48x48 and was trained on all of Scenes' backgrounds (provenance.json). Today's tokenizer is diffusers'
    VQModel, and the model generates 48x48 pixels.
    """
    return scenes_recipe(
        "maskgit", "scenes:classes", num_steps=3300, learning_rate=3e-3, name="maskgit-scenes"
    )
