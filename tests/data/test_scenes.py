"""Scenes: deterministic images, objects that do not overlap, captions that round-trip, an exact checker."""

from dataclasses import fields, replace

import pytest
import torch

from swiftmask.data.scenes import (
    CLASS_NAMES,
    COLOURS,
    FACT_KINDS,
    MAX_OBJECTS,
    NUM_CLASSES,
    PATTERNS,
    SHAPES,
    Facts,
    Scenes,
    caption_facts,
    captions,
    check,
    check_kinds,
    class_facts,
    class_scenes,
    concat_scenes,
    parse_caption,
    parse_captions,
    render,
    sample_scenes,
    simple_scenes,
)
from swiftmask.data.scenes.world import LATTICE


def assert_same(left: Scenes | Facts, right: Scenes | Facts) -> None:
    for field in fields(left):
        assert torch.equal(getattr(left, field.name), getattr(right, field.name)), field.name


def share(facts: Facts, scenes: Scenes) -> torch.Tensor:
    num_true_B, num_stated_B = check(facts, scenes)
    return num_true_B / num_stated_B


def assert_apart(scenes: Scenes) -> None:
    """No two objects of a scene touch, not even the boxes they lie in."""
    for first, second in ((0, 1), (0, 2), (1, 2)):
        apart_B = torch.maximum(
            (scenes.x_BO[:, first] - scenes.x_BO[:, second]).abs(),
            (scenes.y_BO[:, first] - scenes.y_BO[:, second]).abs(),
        )
        reach_B = scenes.radius_BO[:, first] + scenes.radius_BO[:, second]
        assert (apart_B > reach_B)[scenes.shape_BO[:, second] >= 0].all()


def swapped(scenes: Scenes, order: list[int]) -> Scenes:
    changed = {f.name: getattr(scenes, f.name)[:, order] for f in fields(scenes) if f.name.endswith("_BO")}
    return replace(scenes, **changed)


def test_a_seed_gives_the_same_image_in_any_batch() -> None:
    seeds = [7, 2**40 + 3, 0, 12345678901234]
    together = render(sample_scenes(seeds))
    for place, seed in enumerate(seeds):
        alone = sample_scenes([seed])
        assert_same(alone, sample_scenes(torch.tensor(seeds))[place : place + 1])
        assert torch.equal(render(alone)[0], together[place])


def test_a_class_image_is_the_same_in_any_batch() -> None:
    labels_B = torch.arange(NUM_CLASSES)
    together = render(class_scenes(labels_B, range(NUM_CLASSES)))
    assert torch.equal(render(class_scenes(labels_B[5:6], [5]))[0], together[5])


def test_seeds_are_endless_and_differ() -> None:
    images_B3HW = render(sample_scenes(range(2000)), 16)
    assert len({tuple(row) for row in (images_B3HW.flatten(1) * 255).int().tolist()}) == 2000
    assert not torch.equal(render(sample_scenes([1])), render(sample_scenes([1 + 2**32])))


def test_images_are_rgb_in_range_at_any_size() -> None:
    scenes = sample_scenes(range(8))
    for size in (16, 48, 100):
        images_B3HW = render(scenes, size)
        assert images_B3HW.shape == (8, 3, size, size)
        assert images_B3HW.dtype == torch.float32
        assert images_B3HW.min() >= 0
        assert images_B3HW.max() <= 1


def test_resolution_changes_sharpness_only() -> None:
    scenes = sample_scenes(range(64))
    halved_B3HW = torch.nn.functional.avg_pool2d(render(scenes, 256), 4)
    assert (halved_B3HW - render(scenes, 64)).abs().mean() < 0.01


@pytest.mark.parametrize("num_objects", [1, 2, 3])
def test_objects_lie_inside_and_never_overlap(num_objects: int) -> None:
    scenes = sample_scenes(range(20_000), num_objects=num_objects)
    present_BO = scenes.shape_BO >= 0
    assert (present_BO.sum(dim=1) == num_objects).all()
    for centre_BO in (scenes.x_BO, scenes.y_BO):
        assert ((centre_BO - scenes.radius_BO >= 0) & (centre_BO + scenes.radius_BO <= 1))[present_BO].all()
    assert_apart(scenes)


def test_painted_pixels_stay_in_the_box_of_the_radius() -> None:
    labels_B = torch.arange(NUM_CLASSES).repeat(20)
    scenes = replace(class_scenes(labels_B, range(len(labels_B))), pattern_B=torch.zeros_like(labels_B))
    images_B3HW = render(scenes, 128)
    empty_B3HW = render(replace(scenes, shape_BO=torch.full_like(scenes.shape_BO, -1)), 128)
    painted_BHW = (images_B3HW - empty_B3HW).abs().amax(dim=1) > 0
    pixels_W = (torch.arange(128) + 0.5) / 128
    reach_B11 = scenes.radius_BO[:, :1, None] + 1.5 / 128
    outside_BHW = ((pixels_W - scenes.x_BO[:, :1, None]).abs() > reach_B11) | (
        (pixels_W[:, None] - scenes.y_BO[:, :1, None]).abs() > reach_B11
    )
    assert not (painted_BHW & outside_BHW).any()
    assert painted_BHW.flatten(1).any(dim=1).all()


def test_objects_differ_from_each_other_and_from_the_background() -> None:
    scenes = sample_scenes(range(20_000), num_objects=3)
    kinds_BO = scenes.shape_BO * len(COLOURS) + scenes.colour_BO
    assert all((kinds_BO[:, a] != kinds_BO[:, b]).all() for a, b in ((0, 1), (0, 2), (1, 2)))
    assert (scenes.colour_BO != scenes.background_B[:, None]).all()
    labels_B = torch.arange(NUM_CLASSES).repeat(100)
    classes = class_scenes(labels_B, range(len(labels_B)))
    assert (classes.colour_BO[:, 0] != classes.background_B).all()


def test_every_choice_is_drawn_about_equally_often() -> None:
    scenes = sample_scenes(range(30_000))
    for values, num_values in (
        (scenes.count_B - 1, 3),
        (scenes.shape_BO[:, 0], 6),
        (scenes.colour_BO[:, 0], 8),
        (scenes.size_BO[:, 0], 2),
        (scenes.pattern_B, 4),
        (scenes.background_B, 8),
    ):
        shares = torch.bincount(values, minlength=num_values) / len(values)
        assert (shares * num_values - 1).abs().max() < 0.06


def test_classes_show_one_object_of_their_shape_and_colour() -> None:
    labels_B = torch.arange(NUM_CLASSES)
    scenes = class_scenes(labels_B, range(NUM_CLASSES))
    assert (scenes.count_B == 1).all()
    names = [
        f"{COLOURS[c]} {SHAPES[s]}"
        for c, s in zip(scenes.colour_BO[:, 0], scenes.shape_BO[:, 0], strict=True)
    ]
    assert tuple(names) == CLASS_NAMES
    assert (share(class_facts(labels_B), scenes) == 1).all()
    assert (share(class_facts(labels_B.roll(1)), scenes) < 1).all()
    assert (check(class_facts(labels_B), scenes)[1] == 3).all()


def test_class_images_are_simple() -> None:
    scenes = class_scenes(torch.arange(NUM_CLASSES).repeat(20), range(20 * NUM_CLASSES))
    assert (scenes.tilt_BO == 0).all()
    assert len(scenes.radius_BO[:, 0].unique()) == 2
    steps_BX = torch.stack([scenes.x_BO[:, 0], scenes.y_BO[:, 0]], dim=1) * LATTICE
    torch.testing.assert_close(steps_BX, steps_BX.round())
    assert (scenes.pattern_B == PATTERNS.index("plain")).all()


def test_several_simple_objects_lie_on_the_lattice_apart_and_in_no_doubtful_relation() -> None:
    scenes = simple_scenes(range(20_000))
    assert scenes.count_B.unique().tolist() == [2, 3]
    assert scenes.radius_BO.unique().shape == (3,)  # two, and none
    for step_BO in (scenes.x_BO * LATTICE, scenes.y_BO * LATTICE):
        torch.testing.assert_close(step_BO, step_BO.round())
    assert_apart(scenes)
    two = scenes[scenes.count_B == 2]
    dx_B, dy_B = (two.x_BO[:, 1] - two.x_BO[:, 0]).abs(), (two.y_BO[:, 1] - two.y_BO[:, 0]).abs()
    assert ((dx_B - dy_B).abs() * LATTICE).min() > 0.9


def test_captions_round_trip() -> None:
    scenes = sample_scenes(range(600))
    assert_same(parse_captions(captions(scenes)), caption_facts(scenes))


def test_a_caption_may_leave_facts_out() -> None:
    facts = parse_caption("A red circle and an orange star")
    assert facts.count_B.tolist() == [2]
    assert facts.colour_BO.tolist() == [[0, 1, -1]]
    assert facts.size_BO.tolist() == [[-1, -1, -1]]
    assert [facts.relation_B.item(), facts.pattern_B.item(), facts.background_B.item()] == [-1, -1, -1]
    assert parse_caption("a ring on a dotted background").pattern_B.tolist() == [3]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a small pink circle", "unknown word 'pink'"),
        ("a small red", "expected circle or square"),
        ("", "expected a or an, found 'the end'"),
        ("a red circle a blue square", "expected the end, found 'a'"),
        ("a ring, a ring, a ring and a ring", "4 objects"),
        ("a ring left of", "found 'the end'"),
    ],
)
def test_a_bad_caption_is_refused_with_the_grammar(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        parse_caption(text)
    assert "caption    = object" in str(error.value)


def test_own_facts_all_hold_in_any_order_of_the_objects() -> None:
    scenes = sample_scenes(range(500))
    assert (share(caption_facts(scenes), scenes) == 1).all()
    for order in ([1, 0, 2], [2, 0, 1], [2, 1, 0]):
        assert (share(caption_facts(scenes), swapped(scenes, order)) == 1).all()


@pytest.mark.parametrize("name", ["pattern_B", "background_B", "shape_BO", "colour_BO", "size_BO", "count_B"])
def test_one_changed_fact_is_one_false_fact(name: str) -> None:
    scenes = sample_scenes(range(300), num_objects=1)
    facts = caption_facts(scenes)
    value = getattr(facts, name).clone()
    value[(slice(None), 0) if name.endswith("O") else slice(None)] += 1
    num_true_B, num_stated_B = check(replace(facts, **{name: value}), scenes)
    assert (num_stated_B - num_true_B == 1).all()
    num_true_BK, num_stated_BK = check_kinds(replace(facts, **{name: value}), scenes)
    kind = FACT_KINDS.index(name.split("_")[0])
    assert (num_stated_BK - num_true_BK).nonzero()[:, 1].unique().tolist() == [kind]


def test_a_turned_relation_is_false() -> None:
    scenes = sample_scenes(range(300), num_objects=2)
    facts = caption_facts(scenes)
    num_true_B, num_stated_B = check(replace(facts, relation_B=facts.relation_B ^ 1), scenes)
    assert (num_stated_B - num_true_B == 1).all()


def test_one_turned_object_pair_costs_more_than_its_place() -> None:
    scenes = sample_scenes(range(300), num_objects=2)
    traded = replace(scenes, x_BO=scenes.x_BO[:, [1, 0, 2]], y_BO=scenes.y_BO[:, [1, 0, 2]])
    num_true_B, num_stated_B = check(caption_facts(scenes), traded)
    assert (num_stated_B - num_true_B == 1).all()


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=f"1 to {MAX_OBJECTS}, got 4"):
        sample_scenes([0], num_objects=4)
    with pytest.raises(ValueError, match="labels must lie in 0..47"):
        class_scenes(torch.tensor([48]), [0])
    with pytest.raises(ValueError, match="one seed per label"):
        class_scenes(torch.tensor([1, 2]), [0])
    with pytest.raises(ValueError, match="size must be at least 1"):
        render(sample_scenes([0]), 0)
    with pytest.raises(ValueError, match="one set of facts per scene"):
        check(class_facts(torch.tensor([0])), sample_scenes([0, 1]))


def test_batches_join_and_split() -> None:
    scenes = sample_scenes(range(6))
    assert_same(concat_scenes([scenes[:2], scenes[torch.tensor([2, 3, 4, 5])]]), scenes)
    assert len(scenes.to("cpu")) == 6
