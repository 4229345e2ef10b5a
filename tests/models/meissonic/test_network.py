"""The transformer: branches, times, grids and dtypes; its numbers are the golden cases' matter."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from swiftmask.core.tokens import guide
from swiftmask.models.meissonic import Meissonic
from swiftmask.models.meissonic.blocks import _linear_of_both
from swiftmask.models.meissonic.network import Conditioning, Transformer
from swiftmask.models.meissonic.rotary import places_of, rotary_at


@pytest.fixture
def transformer(model: Meissonic) -> Transformer:
    return model.transformer


def prompts(transformer: Transformer, count: int) -> Conditioning:
    generator = torch.Generator().manual_seed(1)
    states_XTC = torch.randn(count, 5, 20, generator=generator)
    pooled_XD = torch.randn(count, 48, generator=generator)
    return transformer.condition(states_XTC, pooled_XD, torch.tensor([[64.0, 32.0, 1.0, 2.0, 6.0]] * count))


def run(transformer: Transformer, ids_BHW: Tensor, conditioning: Conditioning, *timesteps: float) -> Tensor:
    stride = transformer.config.stride
    grid = (ids_BHW.shape[1] // stride, ids_BHW.shape[2] // stride)
    rotary = rotary_at(places_of(grid, 5), transformer.config.rotary_axes)
    return transformer(ids_BHW, conditioning, torch.tensor(timesteps), rotary)


def test_every_row_has_its_own_prompt_and_time(transformer: Transformer) -> None:
    ids_BHW = torch.randint(40, (2, 4, 8))
    both = prompts(transformer, 4)
    features_XLD = run(transformer, ids_BHW, both, 3.0, 9.0, 3.0, 9.0)
    assert features_XLD.shape == (4, 32, 48)
    for row in range(4):
        own = Conditioning(*(rows[row : row + 1] for rows in both))
        alone_1LD = run(transformer, ids_BHW[row % 2, None], own, (3.0, 9.0)[row % 2])
        torch.testing.assert_close(features_XLD[row], alone_1LD[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features_XLD, run(transformer, ids_BHW, both, 3.0), atol=1e-3)


def test_guidance_before_the_head_is_guidance_after_it(transformer: Transformer) -> None:
    features_GLD = run(transformer, torch.randint(40, (1, 4, 4)), prompts(transformer, 2), 2.0)
    before_LK = transformer.logits(guide(features_GLD, 9.0))
    torch.testing.assert_close(before_LK, guide(transformer.logits(features_GLD), 9.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_at_any_number_of_steps(transformer: Transformer, dtype: torch.dtype) -> None:
    """1000 x 99 overflows float16: time is taken in float32."""
    ids_BHW = torch.randint(40, (1, 4, 4))
    expected_LD = run(transformer, ids_BHW, prompts(transformer, 1), 99.0)
    half = copy.deepcopy(transformer).to(dtype)
    features_LD = run(half, ids_BHW, prompts(half, 1), 99.0)
    assert features_LD.dtype == dtype
    logits_LK = half.logits(features_LD)
    assert logits_LK.dtype == torch.float32
    error = (logits_LK - transformer.logits(expected_LD)).abs().mean()
    assert error < 0.05 * transformer.logits(expected_LD).abs().mean()


def test_float16_streams_saturate_instead_of_overflowing(transformer: Transformer) -> None:
    half = copy.deepcopy(transformer).half()
    weights = dict(half.named_parameters())
    weights["transformer_blocks.0.ff_context.net.2.bias"].fill_(6e4)
    weights["transformer_blocks.0.norm1_context.linear.bias"].fill_(2.0)
    weights["single_transformer_blocks.0.proj_out.bias"].fill_(6e4)
    weights["single_transformer_blocks.0.norm.linear.bias"].fill_(2.0)
    assert run(half, torch.randint(40, (1, 4, 4)), prompts(half, 1), 1.0).isfinite().all()


def test_sizes_that_cannot_be(transformer: Transformer) -> None:
    for changes, message in (
        ({"rotary_axes": (4, 4)}, r"three widths that add up to head_width 12, got \(4, 4\)"),
        ({"rotary_axes": (2, 5, 5)}, "must be even"),
        ({"vocabulary_size": 32}, "a vocabulary of more than 32 codes, got 32"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(transformer.config, **changes)


def test_a_linear_layer_of_two_inputs_is_that_of_both_side_by_side() -> None:
    layer, left_XTD, right_XTE = nn.Linear(10, 3), torch.randn(2, 5, 4), torch.randn(2, 5, 6)
    joined_XTD = layer(torch.cat([left_XTD, right_XTE], dim=-1))
    torch.testing.assert_close(_linear_of_both(layer, left_XTD, right_XTE), joined_XTD)
    wrapped = nn.Sequential(layer)
    assert torch.equal(_linear_of_both(wrapped, left_XTD, right_XTE), joined_XTD)
