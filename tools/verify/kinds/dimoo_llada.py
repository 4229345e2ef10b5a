"""Lumina-DiMOO's backbone: features and logits of recorded ids, and a pass over few rows with cached keys."""

import torch
from torch import Tensor

from swiftmask.core.files import load_strict
from swiftmask.models.lumina_dimoo.network import Backbone
from swiftmask.models.lumina_dimoo.weights import infer_backbone_config
from verify.cases import Case, Check, compare


def check(case: Case) -> list[Check]:
    backbone, given = build(case), case.group("in")
    ids_BT = given["input_ids"]
    features_BTD = backbone(ids_BT, _places(ids_BT))
    outputs = {"feature": features_BTD, "logits": _logits(backbone, features_BTD)}
    if "ml_cache.compute_mask" in given:
        outputs["ml_cache.logits"] = _partial_logits(backbone, given)
    return compare(outputs, case.group("out"))


def build(case: Case) -> Backbone:
    """The case's own backbone: what the weights do not tell comes from its config."""
    state = case.group("state")
    with torch.device("meta"):
        backbone = Backbone(infer_backbone_config(state, case.config, source=case.name))
    load_strict(backbone, state, source=case.name)
    return backbone.eval()


def _partial_logits(backbone: Backbone, given: dict[str, Tensor]) -> Tensor:
    """Only the marked rows of the changed ids anew; logits elsewhere are those of the full pass."""
    mask_1T, ids_1T = given["ml_cache.compute_mask"].bool(), given["ml_cache.input_ids"]
    if len(ids_1T) != 1:
        raise ValueError(f"ml_cache.input_ids must be one sequence, got {len(ids_1T)}")
    before_1T = given["input_ids"][:1]
    features_1TD, cache = backbone.forward_with_cache(before_1T, _places(before_1T))
    rows_1K = mask_1T[0].nonzero().T
    fresh_1KD, _ = backbone.recompute(ids_1T.gather(1, rows_1K), rows_1K, _places(ids_1T), cache)
    index_1KD = rows_1K[..., None].expand_as(fresh_1KD)
    return _logits(backbone, features_1TD.scatter(1, index_1KD, fresh_1KD))


def _logits(backbone: Backbone, features_BTD: Tensor) -> Tensor:
    return backbone.logits(features_BTD, 0, backbone.config.vocabulary_size)


def _places(ids_BT: Tensor) -> Tensor:
    return torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
