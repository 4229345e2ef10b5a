"""The recipe of meissonic-scenes at toy size: captioned worlds, tokenizer, and a whole run to a folder that
loads.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import swiftmask
from swiftmask.core.codebook import telling_codes
from swiftmask.core.vq_codec import VQCodec, VQConfig, build_vq_codec
from swiftmask.data.scenes import NUM_CLASSES, caption_facts, check, parse_captions
from swiftmask.models.meissonic import Meissonic
from swiftmask.models.meissonic.network import Transformer
from swiftmask.models.meissonic.text import build_text_encoder, word_tokenizer
from swiftmask.recipes import meissonic_scenes
from swiftmask.recipes.captioned_scenes import CAPTION_LENGTH, WORDS, CaptionedCodes, World
from swiftmask.recipes.meissonic_scenes import MeissonicRecipe
from swiftmask.recipes.meissonic_scenes_tokenizer import TokenizerRecipe
from swiftmask.recipes.vq_codec_training import (
    CodecTrainer,
    codebook_of,
    nearest,
    pruned,
    train_step,
)
from swiftmask.training.setup import TrainingConfig

SEEDS = torch.arange(4800)
TINY_CODEC = VQConfig(
    block_out_channels=(4, 4, 8),
    layers_per_block=1,
    latent_channels=4,
    num_vq_embeddings=16,
    vq_embed_dim=2,
    norm_num_groups=2,
)


def tiny() -> MeissonicRecipe:
    few = TrainingConfig(num_steps=2, batch_size=8, precision="no")
    real = meissonic_scenes.recipe()
    transformer = replace(
        real.transformer,
        num_heads=2,
        head_width=8,
        num_double_blocks=1,
        num_single_blocks=1,
        text_width=8,
        codebook_size=8,
        vocabulary_size=9,
        rotary_axes=(4, 2, 2),
    )
    text = replace(real.text, hidden_size=8, intermediate_size=8, projection_dim=16, num_hidden_layers=2)
    tokenizer = TokenizerRecipe(codec=TINY_CODEC, num_codes=8, resolution=16, training=few)
    return MeissonicRecipe(
        tokenizer=tokenizer,
        text=text,
        transformer=transformer,
        training=replace(few, precision="bf16-weights"),
        sampling=real.sampling,
        num_pictures=16,
    )


@pytest.fixture
def codec() -> VQCodec:
    torch.manual_seed(0)
    return build_vq_codec(TINY_CODEC)


def set_codes(codec: VQCodec, codebook_VC: Tensor) -> None:
    with torch.no_grad():
        codebook_of(codec).copy_(codebook_VC)


@pytest.mark.parametrize(("simple", "single"), [(0, 50), (25, 100), (100, 100), (100, 50), (50, 0)])
def test_a_world_is_the_mixture_it_says(simple: int, single: int) -> None:
    scenes = World(simple_percent=simple, single_percent=single).scenes(SEEDS)
    simple_B = (scenes.tilt_BO == 0).all(dim=1)
    assert int(simple_B.sum()) == len(SEEDS) * simple // 100
    assert (scenes.pattern_B[simple_B] == 0).all()
    single_B = simple_B & (scenes.count_B == 1)
    assert int(single_B.sum()) == len(SEEDS) * simple * single // 10_000
    labels_B = SEEDS[single_B] % NUM_CLASSES
    assert (labels_B.bincount(minlength=NUM_CLASSES) == simple * single // 100).all(), (
        "evenly over the classes"
    )
    if simple * single < 10_000:
        assert scenes.count_B.unique().tolist() == [1, 2, 3]


def test_a_scene_depends_on_its_seed_alone() -> None:
    world = World(simple_percent=50)
    together, alone = world.scenes(SEEDS[:8]), world.scenes(SEEDS[5:6])
    assert torch.equal(together.x_BO[5], alone.x_BO[0])
    assert len({float(x) for x in together.x_BO[:, 0]}) > 4


@pytest.mark.parametrize("share", ["simple_percent", "single_percent"])
def test_a_share_of_a_hundred_and_ten_is_refused(share: str) -> None:
    with pytest.raises(ValueError, match=f"{share} must be a whole number between 0 and 100, got 110"):
        World(**{share: 110})


def test_every_caption_can_be_read_by_tokenizer_and_judges() -> None:
    world, tokenizer = World(simple_percent=10), word_tokenizer(WORDS, length=CAPTION_LENGTH)
    texts = world.captions(SEEDS[:300])
    ids_BT = tokenizer(texts)  # refuses unknown words and long captions
    assert int((ids_BT != 0).sum(dim=1).max()) < CAPTION_LENGTH
    assert torch.equal(ids_BT.unique(), torch.arange(len(WORDS) + 3)[torch.arange(len(WORDS) + 3) != 2])
    scenes = world.scenes(SEEDS[:300])
    num_true_B, num_stated_B = check(parse_captions(texts), scenes)
    assert torch.equal(num_true_B, num_stated_B)
    assert torch.equal(num_stated_B, check(caption_facts(scenes), scenes)[1])


def test_half_a_tokenizer_batch_is_mosaics() -> None:
    recipe = tiny().tokenizer
    images_B3HW = recipe.batches(3, 0, 1)
    assert images_B3HW.shape == (8, 3, 16, 16)
    assert torch.equal(images_B3HW, recipe.batches(3, 0, 1))
    assert not torch.equal(images_B3HW, recipe.batches(4, 0, 1))
    corners_B3 = images_B3HW[:, :, 0, 0] - images_B3HW[:, :, -1, -1]
    assert corners_B3[:4].abs().amax(dim=1).gt(0).any(), "quadrants of several pictures"
    assert corners_B3[4:].eq(0).all(), "one plain background"


def test_training_the_codec_lowers_its_loss_and_moves_its_codes(codec: VQCodec) -> None:
    images_B3HW = torch.rand(4, 3, 1, 1).expand(-1, -1, 16, 16).contiguous()
    before_VC = codebook_of(codec).clone()
    trainer = CodecTrainer(codec).train()
    optimizer = torch.optim.Adam([p for p in trainer.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(25):
        loss, _ = train_step(trainer, images_B3HW)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert not torch.equal(codebook_of(codec), before_VC)


def test_a_dead_code_is_moved_to_a_latent_of_the_batch(codec: VQCodec) -> None:
    trainer = CodecTrainer(codec).train()
    trainer.running.count_V.fill_(10.0)
    trainer.running.count_V[3] = 0.0
    trainer.running.total_VC.copy_(10.0 * codebook_of(codec))
    far_C = torch.tensor([50.0, 50.0])
    codebook_of(codec)[3] = far_C
    trainer(torch.rand(2, 3, 16, 16))
    assert (codebook_of(codec)[3] - far_C).norm() > 10


def test_evaluation_leaves_the_codebook_alone(codec: VQCodec) -> None:
    before_VC = codebook_of(codec).clone()
    CodecTrainer(codec).eval()(torch.rand(2, 3, 16, 16))
    assert torch.equal(codebook_of(codec), before_VC)


def test_training_and_the_codec_pick_the_same_codes(codec: VQCodec) -> None:
    images_B3HW = torch.rand(2, 3, 16, 16)
    set_codes(codec, torch.randn(16, 2))
    latents_XC = codec.vq.quant_conv(codec.vq.encoder(images_B3HW)).permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.equal(nearest(latents_XC, codebook_of(codec)), codec.encode(images_B3HW).flatten())


def test_the_less_used_of_the_closest_pairs_goes() -> None:
    apart_VC = torch.arange(8.0)[:, None] * torch.tensor([10.0, 0.0])
    apart_VC[5] = apart_VC[2] + 0.1
    apart_VC[6] = apart_VC[0] + 0.2
    count_V = torch.tensor([5.0, 1, 9, 1, 1, 3, 7, 1])
    assert telling_codes(apart_VC, count_V, 6).tolist() == [1, 2, 3, 4, 6, 7]


def test_a_pruned_codec_decodes_as_before_with_the_codes_it_kept(codec: VQCodec) -> None:
    set_codes(codec, torch.randn(16, 2))
    count_V = torch.arange(16.0)
    smaller = pruned(codec, count_V, 4)
    kept_V = telling_codes(codebook_of(codec), count_V, 4)
    codes_BHW = torch.randint(4, (2, 4, 4))
    assert (smaller.config.num_vq_embeddings, codec.config.num_vq_embeddings) == (4, 16)
    torch.testing.assert_close(smaller.decode(codes_BHW), codec.decode(kept_V[codes_BHW]))


def test_a_toy_run_ends_in_a_folder_that_draws_and_is_not_mixed_with_another(tmp_path: Path) -> None:
    recipe = tiny()
    folder = recipe.run(tmp_path)
    pipeline = swiftmask.load(folder)
    assert isinstance(pipeline.model, Meissonic)
    assert pipeline.model.spec.codebook_size == 8
    prompts = recipe.world.captions(SEEDS[:1])
    result = pipeline.generate(prompts=prompts, steps=2, output_type="pt")
    assert isinstance(result.images, Tensor)
    assert result.images.shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="other settings"):
        replace(recipe, max_steps=4).run(tmp_path)


def test_a_batch_is_a_function_of_its_step(codec: VQCodec, tmp_path: Path) -> None:
    recipe, words = tiny(), word_tokenizer(WORDS, length=CAPTION_LENGTH)
    pictures = recipe.pictures(codec, words, tmp_path)
    again = recipe.pictures(codec, words, tmp_path)
    assert isinstance(pictures, CaptionedCodes)
    assert torch.equal(pictures.codes_XHW, again.codes_XHW)
    assert torch.equal(pictures.captions_XT, again.captions_XT)
    first, same, other = (recipe.batch(pictures, words([""])[0], step, 0, 1) for step in (5, 5, 6))
    assert torch.equal(first.ids_BHW, same.ids_BHW)
    assert torch.equal(first.captions_BT, same.captions_BT)
    assert not torch.equal(first.ids_BHW, other.ids_BHW)
    assert first.timesteps_B.max() < recipe.max_steps
    assert (first.micro_B5 == torch.tensor([16.0, 16.0, 0.0, 0.0, 6.0])).all()


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"text_width": 12}, "text.hidden_size must be equal, got 12 and 8"),
        ("transformer", {"codebook_size": 7}, "tokenizer.num_codes must be equal, got 7 and 8"),
        ("text", {"projection_dim": 12}, "text.projection_dim must be equal, got 16 and 12"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_training(
    part: str, changes: dict[str, int], message: str, tmp_path: Path
) -> None:
    recipe = tiny()
    misfit = replace(recipe, **{part: replace(getattr(recipe, part), **changes)})
    with pytest.raises(ValueError, match=message):
        misfit.run(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"resolution": 18}, "multiple of 4, got 18"), ({"num_codes": 17}, r"1\.\.16 .* got 17")],
)
def test_a_tokenizer_that_cannot_be_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(tiny().tokenizer, **changes)


def test_the_real_model_fits_into_eight_megabytes() -> None:
    """As float16, beside which a config of a few kilobytes hardly counts."""
    recipe = meissonic_scenes.recipe()
    codec = replace(recipe.tokenizer.codec, num_vq_embeddings=recipe.tokenizer.num_codes)
    words = word_tokenizer(WORDS, length=CAPTION_LENGTH)
    with torch.device("meta"):
        networks = (
            Transformer(recipe.transformer),
            build_vq_codec(codec),
            build_text_encoder(recipe.text, words),
        )
    num_parameters = sum(p.numel() for network in networks for p in network.parameters())
    assert 3_000_000 < num_parameters < 4_000_000
    assert recipe.text.vocab_size == len(WORDS) + 3
