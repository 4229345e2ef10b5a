"""The Lumina-DiMOO shortcut: features moved forward from recorded features and fresh tokens."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from swiftmask.core.files import load_strict
from swiftmask.methods.shortcut import RotaryShortcut
from swiftmask.methods.shortcut.weights import infer_rotary_config
from verify.cases import Case, Check, compare


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Fresh tokens as the file holds them; every row and token counts."""

    embedded_XND: Tensor
    places_XN: Tensor
    row_places_XT: Tensor
    padding: tuple[int, ...] = ()
    row_padding: tuple[int, ...] = ()


def check(case: Case) -> list[Check]:
    shortcut, given = build(case), case.group("in")
    features_1TD, embedded_1ND = given["prev_feature"], given["new_token_embedding"]
    places_1N = given["new_token_map"].bool()[0].nonzero().T
    if len(features_1TD) != 1 or places_1N.shape[1] != embedded_1ND.shape[1]:
        raise ValueError(f"{case.name}: expected one sequence, and a mark for each new token embedding")
    fresh = _Recorded(
        embedded_1ND,
        places_1N,
        torch.arange(features_1TD.shape[1])[None],
    )
    return compare({"feature": shortcut(features_1TD, fresh, given["mask_ratio"])}, case.group("out"))


def build(case: Case) -> RotaryShortcut:
    """The case's own shortcut; the weights must have the sizes that the config tells."""
    sizes, state = case.config, case.group("state")
    config = infer_rotary_config(state, num_heads=sizes["n_heads"], source=case.name)
    found = (config.width, config.bottleneck_width, config.num_blocks)
    told = (sizes["d_model"], round(sizes["d_model"] / sizes["bottleneck_ratio"]), sizes["n_block"])
    if found != told:
        raise ValueError(
            f"{case.name}: config says width, bottleneck and blocks {told}, the weights say {found}"
        )
    config = replace(config, rope_theta=sizes["rope_theta"], norm_eps=sizes["rms_norm_eps"])
    with torch.device("meta"):
        shortcut = RotaryShortcut(config)
    load_strict(shortcut, state, source=case.name)
    return shortcut.eval()
