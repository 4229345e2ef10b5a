"""Meissonic behind the contract: its time, its null branch, its sizes, and what it refuses."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.core.schedule import meissonic_schedule
from swiftmask.core.types import Canvas, Record, Trajectory
from swiftmask.core.unmask import by_confidence
from swiftmask.core.vq_codec import VQCodec
from swiftmask.models.meissonic import Meissonic, Prompt

GUIDED = SamplingOptions(guidance=3.0)
L = 16


def features(model: Meissonic, *prompts: str | Prompt) -> Tensor:
    """Of a blank canvas, both branches: [2, B, L, D]."""
    return model.features(model.blank(len(prompts)), model.with_null(model.encode(prompts)))


def drawn(
    model: Meissonic,
    *prompts: str,
    steps: int,
    canvas: Canvas | None = None,
    on_step: Callable[[Record], None] | None = None,
) -> Trajectory:
    """A guided decode that the backbone is told of."""
    canvas = model.blank(len(prompts)) if canvas is None else canvas
    schedule = model.schedule(steps, num_masked=canvas.num_masked, options=GUIDED)
    return decode(
        model,
        prepare_condition(model, model.encode(prompts).along(schedule), schedule),
        schedule,
        SeededNoise(range(len(prompts)), model.spec.num_tokens),
        canvas=canvas,
        features_fn=FullFeatures(model),
        unmask=by_confidence,
        on_step=on_step,
    )


def test_the_backbone_is_told_how_many_steps_are_left(model: Meissonic) -> None:
    told: list[float] = []
    hook = model.transformer.register_forward_pre_hook(lambda module, inputs: told.append(inputs[2].item()))
    try:
        drawn(model, "a red circle", steps=5)
    finally:
        hook.remove()
    assert told == [4, 3, 2, 1, 0]


def test_steps_left_of_any_canvas(model: Meissonic) -> None:
    schedule = meissonic_schedule(L, 4)
    condition = model.encode(["a circle"]).along(schedule)
    assert [step.num_masked_before for step in schedule] == [16, 14, 11, 6]
    assert [condition.steps_left(count) for count in (16, 15, 14, 11, 7, 6, 1)] == [3, 2, 2, 1, 0, 0, 0]
    untold = model.encode(["a circle"])
    assert [untold.steps_left(count) for count in (16, 2, 1)] == [15, 1, 0]


def test_the_null_branch_is_the_negative_prompt(model: Meissonic) -> None:
    same = features(model, Prompt("a red circle", negative="a red circle"), "a red circle")
    torch.testing.assert_close(same[0, 0], same[1, 0])
    assert not torch.allclose(same[0, 1], same[1, 1])
    named = features(model, Prompt("a small square", negative="a red circle"))
    torch.testing.assert_close(named[1, 0], same[0, 1], rtol=1e-4, atol=1e-5)


def test_facts_about_the_image_are_heard(model: Meissonic) -> None:
    plain, rated, cut, wide = features(
        model,
        "a circle",
        Prompt("a circle", aesthetic_score=4.0),
        Prompt("a circle", crop=(3, 0)),
        Prompt("a circle", original_size=(8, 16)),
    )[0]
    assert not any(torch.allclose(plain, other, atol=1e-4) for other in (rated, cut, wide))


def test_other_sizes_share_the_networks(model: Meissonic) -> None:
    wide = model.sized(8, 16)
    assert wide.transformer is model.transformer
    assert (wide.spec.grid, model.spec.grid) == ((4, 8), (4, 4))
    images_B3HW = wide.to_pixels(drawn(wide, "a circle", "a square", steps=3).tokens_BL)
    assert images_B3HW.shape == (2, 3, 8, 16)
    assert wide.to_tokens(images_B3HW).shape == (2, 32)


@pytest.mark.parametrize(("size", "mend"), [((10, 8), "8x8"), ((8, 15), "8x16"), ((0, 8), "4x8")])
def test_sizes_that_do_not_fit(model: Meissonic, size: tuple[int, int], mend: str) -> None:
    with pytest.raises(ValueError, match=f"must be multiples of 4, got {size[0]}x{size[1]}: take {mend}"):
        model.sized(*size)


def test_images_of_another_size_are_no_start(model: Meissonic) -> None:
    with pytest.raises(ValueError, match="expected images of 8x8 .* got 8x10: resize them, or take sized"):
        model.to_tokens(torch.rand(1, 3, 8, 10))


def test_networks_that_do_not_fit(model: Meissonic) -> None:
    other = copy.copy(model.text_encoder)
    other.config = replace(other.config, projection_dim=40)
    with pytest.raises(ValueError, match="texts of width 20, pooled to 48, the text encoder gives 20 and 40"):
        Meissonic(model.transformer, other, model.codec, size=(8, 8))
    codec = VQCodec(replace(model.codec.config, num_vq_embeddings=33), model.codec.vq)
    with pytest.raises(ValueError, match="generates 32 codes, the codec has 33"):
        Meissonic(model.transformer, model.text_encoder, codec, size=(8, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_decides_exactly_as_many_tokens(model: Meissonic, dtype: torch.dtype) -> None:
    """Ties and clamps of half precision re-masked decided tokens in the reference."""
    records: list[Record] = []
    half = copy.deepcopy(model).to(dtype)
    tokens_BL = drawn(half, "a circle", "a circle", steps=6, on_step=records.append).tokens_BL
    for record in records:
        kept = ~record.before.masked_BL
        assert (record.after.masked_BL.sum(dim=1) == record.step.num_masked_after).all()
        assert torch.equal(record.after.tokens_BL[kept], record.before.tokens_BL[kept])
        assert record.decision.log_prob_BN is not None
        assert record.decision.log_prob_BN.dtype == torch.float32
    assert tokens_BL.max() < 32
    assert half.to_pixels(tokens_BL).isfinite().all()


def test_a_partly_filled_canvas_keeps_its_tokens(model: Meissonic) -> None:
    given_BL = model.to_tokens(torch.rand(2, 3, 8, 8))
    positions_BN = torch.tensor([[0, 5, 6], [1, 2, 15]])
    canvas = model.blank(2).write(positions_BN, given_BL.gather(1, positions_BN))
    final_BL = drawn(model, "a circle", "a square", steps=3, canvas=canvas).tokens_BL
    assert torch.equal(final_BL.gather(1, positions_BN), given_BL.gather(1, positions_BN))
    assert (final_BL < 32).all()


def test_schedule_defaults_and_options(model: Meissonic) -> None:
    steps = model.schedule(5, num_masked=L, options=SamplingOptions())
    assert {(step.guidance, step.temperature) for step in steps} == {(9.0, 1.0)}
    assert [step.choice_temperature for step in steps] == [2.0, 1.5, 1.0, 0.5, 0.0]
    (first, *_) = model.schedule(
        5, num_masked=L, options=SamplingOptions(guidance=4.0, choice_temperature=1.0)
    )
    assert (first.guidance, first.choice_temperature) == (4.0, 1.0)
