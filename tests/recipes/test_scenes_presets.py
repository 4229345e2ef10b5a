"""The presets of Scenes: the sizes of their models, which fit into eight megabytes."""

import pytest
import torch

from swiftmask.core.trainable import Subject
from swiftmask.core.vq_codec import VQCodec
from swiftmask.data.sources import open_source
from swiftmask.models.mar.codec import KLCodec
from swiftmask.recipes.base_model import BaseModelRecipe
from swiftmask.recipes.codec_training import pruned
from swiftmask.registry import recipe_module


@pytest.mark.parametrize(
    ("name", "family", "grid", "least"),
    [
        ("maskgit-scenes", "maskgit", 12, 3_000_000),
        ("meissonic-scenes", "meissonic", 12, 2_500_000),
        ("dimoo-scenes", "lumina_dimoo", 8, 2_500_000),
        ("mar-scenes", "mar", 6, 3_000_000),
    ],
)
def test_a_preset_is_a_small_model_with_its_tokenizer(name: str, family: str, grid: int, least: int) -> None:
    """As float16, beside which a config of a few kilobytes hardly counts."""
    recipe = recipe_module(name).recipe()
    assert isinstance(recipe, BaseModelRecipe)
    assert (recipe.family, recipe.name) == (family, name)
    tokenizer = recipe.codec
    assert tokenizer is not None
    source = open_source(recipe.data, recipe.source)
    codec = tokenizer.untrained().codec
    if isinstance(codec, VQCodec):
        codec = pruned(codec, torch.arange(512.0), 192)
        assert codec.config.block_out_channels == (32, 64, 64)
    else:
        assert isinstance(codec, KLCodec)
        assert codec.config.ch_mult == (1, 2, 2)
    classes = source.classes
    subject = Subject(
        codec=codec,
        resolution=tokenizer.resolution,
        class_names=classes.names if classes else (),
        attributes_NA=classes.attributes_NA if classes else None,
        captions=[text for i in range(300) for text in source.captions(i)],
    )
    own = recipe.trainable
    task = own.fresh(own.chosen(recipe.size, recipe.network), subject, recipe.objective)
    model = task.model(task.trainer, recipe.sampling, recipe.steps)
    assert model.spec.grid == (grid, grid)
    assert least < sum(p.numel() for p in model.parameters()) < 4_000_000  # type: ignore[attr-defined]
