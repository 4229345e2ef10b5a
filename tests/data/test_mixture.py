"""Worlds of captioned Scenes: the shares of simple ones, and captions that models and judges can read."""

import pytest
import torch

from swiftmask.data.scenes import NUM_CLASSES, World, caption_facts, check, parse_captions
from swiftmask.models.lumina_dimoo.prompts import WordPrompts
from swiftmask.models.meissonic.text import words_of

SEEDS = torch.arange(4800)


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


def test_every_caption_can_be_read_by_models_and_judges() -> None:
    """Both vocabularies are the words that occur, and nothing else."""
    world = World(simple_percent=10)
    texts = world.captions(SEEDS[:300])
    tokenizer, prompts = words_of(texts), WordPrompts.of(texts)
    ids_BT = tokenizer(texts)
    assert int((ids_BT != 0).sum(dim=1).max()) == tokenizer.length - 1  # all but the end
    assert tokenizer.num_ids == len(prompts.words) + 3
    assert ids_BT.unique().tolist() == [i for i in range(tokenizer.num_ids) if i != 2]
    assert {i for text in texts for i in prompts.ids(text)[1:-1]} == set(range(len(prompts.words)))
    scenes = world.scenes(SEEDS[:300])
    num_true_B, num_stated_B = check(parse_captions(texts), scenes)
    assert torch.equal(num_true_B, num_stated_B)
    assert torch.equal(num_stated_B, check(caption_facts(scenes), scenes)[1])
