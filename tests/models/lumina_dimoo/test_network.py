"""The backbone equals the reference's numbers, in the released layout of its weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from swiftmask.core.files import load_strict
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.lumina_dimoo.network import Backbone, BackboneConfig
from swiftmask.models.lumina_dimoo.weights import RELEASED, infer_backbone_config

GOLDEN = Path(__file__).parents[2] / "golden"
TINY = BackboneConfig(width=16, depth=2, num_heads=2, mlp_width=24, vocabulary_size=11)


@pytest.fixture
def backbone(golden_dimoo: LuminaDiMOO) -> Backbone:
    return golden_dimoo.backbone


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN / "dimoo_llada.safetensors")


def places(ids_BT: Tensor) -> Tensor:
    return torch.arange(ids_BT.shape[1]).expand_as(ids_BT)


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())


def test_golden(backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    ids_BT = tensors["in.input_ids"]
    features_BTD = backbone(ids_BT, places(ids_BT))
    assert close(features_BTD, tensors["out.feature"])
    assert close(backbone.logits(features_BTD, 0, 96), tensors["out.logits"])
    assert close(backbone.logits(features_BTD, 64, 24), tensors["out.logits"][..., 64:88])


def test_golden_partial_pass_leaves_other_rows_alone(backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    before_1T, after_1T = tensors["in.input_ids"][:1], tensors["in.ml_cache.input_ids"]
    features_1TD, cache = backbone.forward_with_cache(before_1T, places(before_1T))
    rows_1K = tensors["in.ml_cache.compute_mask"][0].nonzero().T
    kept = [keys.clone() for keys in cache.keys]
    fresh_1KD, after = backbone.recompute(after_1T.gather(1, rows_1K), rows_1K, places(after_1T), cache)
    merged_1TD = features_1TD.clone()
    merged_1TD[:, rows_1K[0]] = fresh_1KD
    assert close(backbone.logits(merged_1TD, 0, 96), tensors["out.ml_cache.logits"])
    others_T = ~tensors["in.ml_cache.compute_mask"][0]
    assert all(torch.equal(old, held) for old, held in zip(kept, cache.keys, strict=True))
    for old, new in zip(kept, after.keys, strict=True):
        assert torch.equal(old[:, :, others_T], new[:, :, others_T])
        assert not torch.equal(old, new)


def test_recomputing_every_row_is_a_full_pass(backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    ids_BT = tensors["in.input_ids"]
    _, cache = backbone.forward_with_cache(ids_BT.flip(0), places(ids_BT))
    rows_BT = places(ids_BT).flip(1)
    fresh_BTD, _ = backbone.recompute(ids_BT.gather(1, rows_BT), rows_BT, places(ids_BT), cache)
    torch.testing.assert_close(fresh_BTD.flip(1), tensors["out.feature"], rtol=1e-4, atol=1e-5)


def test_padding_is_not_attended_to(backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    """Whatever stands in the padding, on the left, the other rows are those of the sequence alone."""
    ids_1T = tensors["in.input_ids"][:1]
    for filler in (0, 7):
        padded_1T = torch.cat([torch.full((1, 3), filler), ids_1T], dim=1)
        places_1T = places(padded_1T) - 3
        features_1TD = backbone(padded_1T, places_1T, [3])
        assert features_1TD.isfinite().all()
        assert close(features_1TD[:, 3:], tensors["out.feature"][:1])


def test_only_differences_of_places_matter(backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    ids_1T = tensors["in.input_ids"][:1]
    moved_1TD = backbone(ids_1T, places(ids_1T) + 5)
    torch.testing.assert_close(moved_1TD, tensors["out.feature"][:1], rtol=1e-3, atol=1e-4)
    stretched_1TD = backbone(ids_1T, places(ids_1T) * 2)
    assert not torch.allclose(stretched_1TD, tensors["out.feature"][:1], rtol=1e-2)


def test_the_state_dict_is_the_released_layout(tensors: dict[str, Tensor], backbone: Backbone) -> None:
    """Joined projections load from and save to separate ones, copied or adopted."""
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    assert {name.split(".")[-1] for name, _ in backbone.named_parameters()} >= {
        "qkv_weight",
        "gate_up_weight",
    }
    with torch.device("meta"):
        adopted = Backbone(backbone.config)
    load_strict(adopted, state, source="golden")
    for module in (backbone, adopted):
        ours = module.state_dict()
        assert ours.keys() == state.keys()
        assert all(torch.equal(ours[key], value) for key, value in state.items())


def test_a_missing_projection_is_named() -> None:
    state = Backbone(TINY).state_dict()
    del state["model.transformer.blocks.1.k_proj.weight"]
    with pytest.raises(ValueError, match=r"1 missing: model\.transformer\.blocks\.1\.k_proj\.weight"):
        load_strict(Backbone(TINY), state, source="here")
    with pytest.raises(RuntimeError, match="qkv_weight"):
        Backbone(TINY).load_state_dict(state)


def test_released_keys_shapes_and_size() -> None:
    manifest = json.loads((GOLDEN / "manifests" / "lumina_dimoo.json").read_text())
    expected = {key: torch.empty(shape, device="meta") for key, shape in manifest["tensors"].items()}
    with torch.device("meta"):
        backbone = Backbone(RELEASED)
    assert {k: v.shape for k, v in backbone.state_dict().items()} == {k: v.shape for k, v in expected.items()}
    assert sum(p.numel() for p in backbone.parameters()) == manifest["parameters"] == 8_081_805_312
    assert infer_backbone_config(expected) == RELEASED


def test_bfloat16_stays_close(backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    low = Backbone(backbone.config)
    low.load_state_dict(backbone.state_dict())
    ids_BT = tensors["in.input_ids"]
    features_BTD = low.bfloat16()(ids_BT, places(ids_BT))
    assert features_BTD.dtype == torch.bfloat16
    assert (features_BTD.float() - tensors["out.feature"]).abs().max() <= 0.05 * tensors[
        "out.feature"
    ].abs().max()


def test_fresh_weights_keep_the_scale_and_gradients_reach_them() -> None:
    backbone = Backbone(TINY)
    ids_1T = torch.tensor([[1, 5, 9, 2]])
    features_1TD = backbone(ids_1T, places(ids_1T))
    assert features_1TD.square().mean().item() == pytest.approx(1, rel=1e-3)
    backbone.logits(features_1TD, 0, 11).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


def test_impossible_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="width 18 and 6 heads"):
        BackboneConfig(width=18, depth=1, num_heads=6, mlp_width=8, vocabulary_size=8)


def test_a_cache_keeps_keys_and_values_alone(backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    """Not the joined projection that they are parts of."""
    ids_BT = tensors["in.input_ids"]
    _, cache = backbone.forward_with_cache(ids_BT, places(ids_BT))
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in cache.keys + cache.values}
    assert sum(kept.values()) == 2 * backbone.config.depth * backbone.config.width * ids_BT.numel() * 4
