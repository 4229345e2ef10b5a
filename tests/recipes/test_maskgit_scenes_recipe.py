"""The recipe of maskgit-scenes at toy size: batches, whole runs from the tokenizer to a folder that loads."""

import gc
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import swiftmask
from swiftmask.data.scenes import NUM_CLASSES
from swiftmask.methods.shortcut import ShortcutConfig
from swiftmask.methods.shortcut.training import ShortcutTrainer
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.network import Transformer
from swiftmask.recipes import maskgit_scenes, maskgit_scenes_shortcut, maskgit_scenes_tokenizer
from swiftmask.recipes.scenes_pictures import mosaics
from swiftmask.recipes.shortcut_scenes import SceneShortcutRecipe
from swiftmask.training.average import Average
from swiftmask.training.setup import Batches, TrainingConfig


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


def test_a_shortcut_is_trained_with_one_copy_of_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted among all tensors that are alive, with the averaged weights and a batch: one matrix of the
    base, in the dtype of the rounds.
    """
    sizes = replace(_tiny().transformer, num_classes=NUM_CLASSES, mlp_width=13)
    codec = replace(_tiny().tokenizer.codec, n_embed=sizes.codebook_size)
    MaskGIT(Transformer(sizes), VQGAN(codec)).save_pretrained(tmp_path / "base", provenance={})
    shape = (13, sizes.width)

    class SeenError(Exception):
        pass

    def alive() -> list[torch.dtype]:
        gc.collect()
        found = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.shape == shape]
        return [t.dtype for t in {t.untyped_storage().data_ptr(): t for t in found}.values()]

    def look(trainer: ShortcutTrainer, batches: Batches, *rest: object, **options: object) -> None:
        average = Average(trainer, 0.9)
        average.module(batches(0, 0, 1))
        assert alive() == [torch.bfloat16] * _tiny().transformer.depth
        raise SeenError

    monkeypatch.setattr("swiftmask.recipes.shortcut_scenes.train", look)
    recipe = _tiny_shortcut(tmp_path / "base")
    rounds = replace(recipe.rounds, token_weight=0.5)
    training = replace(recipe.training, precision="bf16-weights")
    with pytest.raises(SeenError):
        replace(recipe, rounds=rounds, training=training).run(tmp_path / "run")


def _tiny_shortcut(base: Path) -> SceneShortcutRecipe:
    real = maskgit_scenes_shortcut.recipe()
    assert isinstance(real.shortcut, ShortcutConfig)
    rounds = replace(
        real.rounds, images_per_round=3, images_per_update=2, updates_per_round=2, step_counts=(3, 4)
    )
    training = TrainingConfig(num_steps=4, batch_size=2, save_every=2)
    shortcut = replace(real.shortcut, width=8, bottleneck_width=4, num_heads=2)
    return replace(real, base=str(base), shortcut=shortcut, rounds=rounds, training=training, full_steps=2)


def test_a_toy_run_ends_in_a_folder_that_draws(tmp_path: Path) -> None:
    folder = _tiny().run(tmp_path / "base")
    model = swiftmask.load(folder)
    result = model.generate(["red circle"], steps=2, output_type="pt")
    assert isinstance(result.images, torch.Tensor)
    assert result.images.shape == (1, 3, 64, 64)
    assert model.model.spec.codebook_size == 8

    recipe = _tiny_shortcut(folder)
    fast = swiftmask.accelerate(model, shortcut=recipe.run(tmp_path / "shortcut"))
    result = fast.generate(["red circle"], steps=6, output_type="pt")
    assert result.cost.calls["backbone"] == 2
    provenance = json.loads((tmp_path / "shortcut" / "model" / "provenance.json").read_text())
    assert provenance["rounds"]["updates_per_round"] == 2
    with pytest.raises(ValueError, match="other settings"):
        replace(recipe, rounds=replace(recipe.rounds, token_weight=0.1)).run(tmp_path / "shortcut")
