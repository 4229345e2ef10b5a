"""maskgit: a class-conditional MaskGIT on your own images."""

from swiftmask.recipes.base_model import BaseModelRecipe, base_recipe, default_training


def recipe() -> BaseModelRecipe:
    """`swiftmask train maskgit data=products/ tokenizer=runs/tokenizer/model`."""
    return base_recipe("maskgit", default_training())
