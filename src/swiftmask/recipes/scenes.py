"""What the presets of Scenes share: the tokenizer of their small plain images, and the optimisation."""

from typing import Any, Literal

from swiftmask.data.sources import DataConfig
from swiftmask.recipes.base_model import BaseModelRecipe, base_recipe
from swiftmask.recipes.tokenizer import TokenizerRecipe
from swiftmask.training.reconstruction import ReconstructionConfig
from swiftmask.training.setup import TrainingConfig


def scenes_recipe(
    family: str,
    data: Literal["scenes:classes", "scenes:captions"],
    *,
    num_steps: int,
    learning_rate: float,
    resolution: int = 48,
    **settings: Any,
) -> BaseModelRecipe:
    """A recipe of a small model on Scenes, which trains its tokenizer first.

    Flat colours need no losses beside the plain errors, and 192 of 512 codes are enough.
    """
    codec = TokenizerRecipe(
        kind="kl" if family == "mar" else "vq",
        resolution=resolution,
        num_codes=512,
        kept_codes=192,
        losses=ReconstructionConfig(edges=0.0),
        source=DataConfig(num_images=24_000),
        training=TrainingConfig(num_steps=2000, batch_size=24, save_every=100),
    )
    training = TrainingConfig(
        num_steps=num_steps,
        batch_size=64,
        learning_rate=learning_rate,
        muon_learning_rate=2 * learning_rate,
        warmup_steps=100,
        precision="bf16-weights",
        save_every=200,
    )
    return base_recipe(family, training, data=data, codec=codec, **settings)
