"""meissonic: a text-to-image Meissonic on your own images with captions."""

from swiftmask.recipes.base_model import BaseModelRecipe, base_recipe, default_training


def recipe() -> BaseModelRecipe:
    """`swiftmask train meissonic data=products/ tokenizer=runs/tokenizer/model`."""
    return base_recipe("meissonic", default_training())
