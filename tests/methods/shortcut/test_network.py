"""The shortcut network equals the reference's numbers, in every shape it is released in."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from swiftmask.core.transformer import sinusoid
from swiftmask.methods.shortcut import RELEASED_SHORTCUT, Shortcut, ShortcutConfig
from swiftmask.methods.shortcut.network import TIME_SCALE
from swiftmask.methods.shortcut.weights import infer_shortcut_config

GOLDEN = Path(__file__).parents[2] / "golden"
SMALL = ShortcutConfig(width=32, bottleneck_width=16, num_heads=4, time_frequencies=8)


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    tensors = load_file(GOLDEN / "maskgit_shortcut.safetensors")
    positions_BN = tensors["in.new_token_map"].nonzero()[:, 1].reshape(tensors["in.new_token_ids"].shape)
    embedded_BND = tensors["base.tok_emb.weight"][tensors["in.new_token_ids"]]
    return tensors | {"embedded": embedded_BND + tensors["base.pos_emb"][0][positions_BN]}


def test_golden(golden_shortcut: Shortcut, inputs: dict[str, Tensor]) -> None:
    expected_BTD = inputs["out.feature"]
    ours_BTD = golden_shortcut(inputs["in.prev_feature"], inputs["embedded"], inputs["in.mask_ratio"])
    assert (ours_BTD - expected_BTD).abs().max() <= 1e-5 * expected_BTD.abs().max()


def test_order_of_the_tokens_does_not_matter(golden_shortcut: Shortcut, inputs: dict[str, Tensor]) -> None:
    flipped_BTD = golden_shortcut(
        inputs["in.prev_feature"], inputs["embedded"].flip(1), inputs["in.mask_ratio"]
    )
    expected_BTD = inputs["out.feature"]
    assert (flipped_BTD - expected_BTD).abs().max() <= 1e-5 * expected_BTD.abs().max()


def test_rows_do_not_see_each_other(golden_shortcut: Shortcut, inputs: dict[str, Tensor]) -> None:
    row = slice(1, 2)
    alone_BTD = golden_shortcut(
        inputs["in.prev_feature"][row], inputs["embedded"][row], inputs["in.mask_ratio"][row]
    )
    torch.testing.assert_close(alone_BTD, inputs["out.feature"][row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_released_keys_shapes_and_sizes(num_blocks: int) -> None:
    manifest = json.loads((GOLDEN / "manifests" / f"maskgit_shortcut_blocks{num_blocks}.json").read_text())
    expected = {key: torch.empty(shape, device="meta") for key, shape in manifest["tensors"].items()}
    config = replace(RELEASED_SHORTCUT, num_blocks=num_blocks)
    with torch.device("meta"):
        shortcut = Shortcut(config)
    assert {k: v.shape for k, v in shortcut.state_dict().items()} == {k: v.shape for k, v in expected.items()}
    assert sum(p.numel() for p in shortcut.parameters()) == manifest["parameters"]
    assert infer_shortcut_config(expected) == replace(config, mlp_width=1536)


@pytest.mark.parametrize(("bottleneck_width", "parameters"), [(768, 16_405_435), (192, 1_545_054)])
def test_other_bottlenecks_have_the_papers_sizes(bottleneck_width: int, parameters: int) -> None:
    with torch.device("meta"):
        shortcut = Shortcut(replace(RELEASED_SHORTCUT, bottleneck_width=bottleneck_width))
    assert sum(p.numel() for p in shortcut.parameters()) == parameters
    assert ("proj_in.weight" in shortcut.state_dict()) == (bottleneck_width != 768)


def test_sinusoid_golden_numbers() -> None:
    """cos first, then sin, of 1000 times the ratio; numbers of the reference at ratios 0.75 and 0.3."""
    table_XF = sinusoid(TIME_SCALE * torch.tensor([0.75, 0.3], dtype=torch.float64), 256)
    torch.testing.assert_close(table_XF[0, :3], torch.tensor([-0.666983008, 0.879756272, -0.670084476]))
    assert table_XF.sum().item() == pytest.approx(117.620319, abs=1e-3)


def test_time_changes_the_prediction_even_in_bfloat16() -> None:
    shortcut = Shortcut(SMALL).to(torch.bfloat16)
    features, embedded = torch.randn(1, 5, 32).bfloat16(), torch.randn(1, 2, 32).bfloat16()
    near, far = (shortcut(features, embedded, torch.tensor([ratio])) for ratio in (0.999, 0.9736))
    assert near.dtype == torch.bfloat16
    assert not torch.equal(near, far)


def test_bfloat16_stays_close(golden_shortcut: Shortcut, inputs: dict[str, Tensor]) -> None:
    low = Shortcut(golden_shortcut.config).eval()
    low.load_state_dict(golden_shortcut.state_dict())
    ours_BTD = low.to(torch.bfloat16)(
        inputs["in.prev_feature"].bfloat16(), inputs["embedded"].bfloat16(), inputs["in.mask_ratio"]
    )
    error = (ours_BTD.float() - inputs["out.feature"]).abs().max()
    assert error <= 0.03 * inputs["out.feature"].abs().max()


def test_without_time_conditioning() -> None:
    shortcut = Shortcut(replace(SMALL, time_frequencies=None))
    assert not any(key.startswith(("time_embedder", "adaLN")) for key in shortcut.state_dict())
    features, embedded = torch.randn(2, 5, 32), torch.randn(2, 2, 32)
    one, other = (shortcut(features, embedded, torch.full((2,), ratio)) for ratio in (0.9, 0.1))
    assert torch.equal(one, other)


@pytest.mark.parametrize("time_frequencies", [8, None])
@pytest.mark.parametrize("bottleneck_width", [16, 32])
def test_start_as_copy_changes_nothing_and_can_learn(
    bottleneck_width: int, time_frequencies: int | None
) -> None:
    config = replace(SMALL, bottleneck_width=bottleneck_width, time_frequencies=time_frequencies)
    shortcut = Shortcut(config).start_as_copy()
    features, embedded, ratio = torch.randn(2, 5, 32), torch.randn(2, 2, 32), torch.tensor([0.9, 0.4])
    predicted = shortcut(features, embedded, ratio)
    assert torch.equal(predicted, features)
    (predicted - torch.randn_like(features)).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in shortcut.parameters())


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of num_heads, got width 30 and 4 heads"):
        ShortcutConfig(width=60, bottleneck_width=30, num_heads=4)
    with pytest.raises(ValueError, match="num_blocks must be a whole number between 1 and 1024, got 0"):
        ShortcutConfig(width=64, bottleneck_width=32, num_heads=4, num_blocks=0)
