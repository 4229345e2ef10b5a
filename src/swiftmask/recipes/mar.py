"""mar: a class-conditional MAR on your own images."""

from swiftmask.recipes.base_model import BaseModelRecipe, base_recipe, default_training


def recipe() -> BaseModelRecipe:
    """`swiftmask train mar data=products/ tokenizer=runs/tokenizer/model`, of a tokenizer with kind=kl."""
    return base_recipe("mar", default_training())
