"""The recipe of mar-scenes at toy size: from the codec to a folder that loads and draws."""

from dataclasses import replace
from pathlib import Path

import torch

import swiftmask
from swiftmask.models.mar import MAR
from swiftmask.models.mar.codec import KLConfig, Posterior
from swiftmask.recipes import mar_scenes, mar_scenes_codec
from swiftmask.recipes.scenes_latents import SceneLatents
from swiftmask.training.setup import TrainingConfig


def _tiny() -> mar_scenes.MARRecipe:
    codec = KLConfig(
        ch=4,
        ch_mult=(1, 1, 2),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=16,
        z_channels=2,
        image_size=64,
        num_groups=2,
    )
    few = TrainingConfig(num_steps=2, batch_size=8, precision="no")
    real = mar_scenes.recipe()
    network = replace(
        real.network,
        encoder_width=8,
        encoder_depth=1,
        encoder_heads=2,
        decoder_width=8,
        decoder_depth=1,
        decoder_heads=2,
        channels=8,
        grid=codec.grid // 2,
        head_width=8,
        head_depth=1,
        buffer_size=2,
    )
    return replace(
        real,
        codec=mar_scenes_codec.CodecRecipe(codec=codec, training=few),
        network=network,
        training=few,
        num_pictures=48,
    )


def test_a_toy_run_ends_in_a_folder_that_draws(tmp_path: Path) -> None:
    folder = _tiny().run(tmp_path)
    pipeline = swiftmask.load(folder)
    assert isinstance(pipeline.model, MAR)
    result = pipeline.generate(["red circle"], steps=2, output_type="pt")
    assert isinstance(result.images, torch.Tensor)
    assert result.images.shape == (1, 3, 64, 64)
    codec = pipeline.model.codec
    posterior = Posterior.of(codec.moments(codec.to_pixels_in(_tiny().codec.batches(7, 0, 1))))
    drawn_BCHW = posterior.sample(torch.randn_like(posterior.mean_BCHW)) * codec.config.scale
    assert 0.8 < drawn_BCHW.std() < 1.2, "the scale of latents is measured"


def test_a_batch_is_a_function_of_its_step(tmp_path: Path) -> None:
    recipe = _tiny()
    codec = recipe.codec.run(tmp_path / "codec")
    latents = SceneLatents.cached(codec, tmp_path / "latents", num_pictures=48)
    once, again, other = (recipe.batch(latents, step, 0, 1) for step in (5, 5, 6))
    assert torch.equal(once.tokens_BLC, again.tokens_BLC)
    assert torch.equal(once.masked_X, again.masked_X)
    assert not torch.equal(once.tokens_BLC, other.tokens_BLC)
