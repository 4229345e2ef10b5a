"""lumina-dimoo: a text-to-image Lumina-DiMOO on your own images with captions."""

from swiftmask.recipes.base_model import BaseModelRecipe, base_recipe, default_training


def recipe() -> BaseModelRecipe:
    """`swiftmask train lumina-dimoo data=products/ tokenizer=runs/tokenizer/model`."""
    return base_recipe("lumina_dimoo", default_training())
