"""maskgit-emoji: a class-conditional MaskGIT of Emoji, whose classes are concepts in styles."""

from swiftmask.models.maskgit.training import Objective, Sizes
from swiftmask.recipes.base_model import BaseModelRecipe
from swiftmask.recipes.emoji import PAIRS, emoji_model


def recipe() -> BaseModelRecipe:
    """`swiftmask train maskgit-emoji`, after `emoji-tokenizer`. The bundled weights had as many updates, in
    four runs (docs/log.md).

    A class is the sum of its concept and its style: 6,252 vectors of their own would be a third of the model,
    and those of held-out pairs would never be trained.
    """
    network = Sizes(depth=7, mlp_width=512, composed_classes=True)
    return emoji_model(
        "maskgit-emoji",
        "maskgit",
        num_steps=5200,
        batch_size=16,
        source=PAIRS,
        network=network,
        objective=Objective(mask_rates="high"),
    )
