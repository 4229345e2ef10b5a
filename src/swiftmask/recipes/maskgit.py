"""maskgit: a class-conditional MaskGIT on your own images."""

from swiftmask.recipes.base_model import BaseModelRecipe, base_recipe
from swiftmask.training.setup import TrainingConfig


def recipe() -> BaseModelRecipe:
    """`swiftmask train maskgit data=products/ tokenizer=runs/tokenizer/model`."""
    training = TrainingConfig(
        num_steps=20_000,
        batch_size=64,
        learning_rate=1e-3,
        muon_learning_rate=2e-3,
        warmup_steps=200,
        precision="no",
        save_every=500,
    )
    return base_recipe("maskgit", training)
