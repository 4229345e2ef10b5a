"""The recipe of maskgit-scenes at toy size: batches, whole runs from the tokenizer to a folder that loads."""

from dataclasses import replace
from pathlib import Path

import torch

import swiftmask
from swiftmask.models.maskgit.codec import VQGANConfig
from swiftmask.recipes import maskgit_scenes, maskgit_scenes_tokenizer
from swiftmask.recipes.scenes_pictures import mosaics
from swiftmask.training.setup import TrainingConfig


def _tiny() -> maskgit_scenes.MaskGITRecipe:
    codec = VQGANConfig(
        ch=4,
        ch_mult=(1, 1, 2),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=16,
        z_channels=4,
        n_embed=16,
        embed_dim=4,
        image_size=64,
        num_groups=2,
    )
    few = TrainingConfig(num_steps=2, batch_size=8, precision="no")
    tokenizer = maskgit_scenes_tokenizer.TokenizerRecipe(codec=codec, num_codes=8, training=few)
    real = maskgit_scenes.recipe()
    transformer = replace(
        real.transformer, width=8, depth=1, num_heads=2, mlp_width=8, codebook_size=8, grid=codec.grid
    )
    return replace(real, tokenizer=tokenizer, transformer=transformer, training=few, num_pictures=48)


def test_half_a_tokenizer_batch_is_mosaics_of_four_pictures() -> None:
    recipe = _tiny().tokenizer
    whole = replace(recipe, training=replace(recipe.training, batch_size=8)).batches(0, 0, 1)
    plain = mosaics(whole[4:])
    assert torch.equal(plain[0, :, :8, :8], whole[4, :, :8, :8])
    assert torch.equal(plain[0, :, :8, 8:], whole[5, :, :8, 8:])
    assert torch.equal(plain[0, :, 8:, :8], whole[6, :, 8:, :8])
    assert torch.equal(plain[0, :, 8:, 8:], whole[7, :, 8:, 8:])
    assert torch.equal(recipe.batches(3, 0, 1), recipe.batches(3, 0, 1))


def test_a_toy_run_ends_in_a_folder_that_draws(tmp_path: Path) -> None:
    folder = _tiny().run(tmp_path / "base")
    model = swiftmask.load(folder)
    result = model.generate(["red circle"], steps=2, output_type="pt")
    assert isinstance(result.images, torch.Tensor)
    assert result.images.shape == (1, 3, 64, 64)
    assert model.model.spec.codebook_size == 8
