"""The MaskGIT shortcut: features moved forward from recorded features and fresh tokens.

The base's embedding tables are stored beside the shortcut's own weights, as `base.*`.
"""

import torch

from swiftmask.core.files import load_strict
from swiftmask.methods.shortcut import Shortcut
from swiftmask.methods.shortcut.weights import infer_shortcut_config
from verify.cases import Case, Check, compare


def check(case: Case) -> list[Check]:
    shortcut, given, base = build(case), case.group("in"), case.group("base")
    ids_BN, map_BT = given["new_token_ids"], given["new_token_map"].bool()
    num_new = ids_BN.shape[1]
    if (map_BT.sum(1) != num_new).any():
        raise ValueError(f"{case.name}: new_token_map must mark {num_new} positions in every row")
    positions_BN = map_BT.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :num_new]
    embedded_BND = base["tok_emb.weight"][ids_BN] + base["pos_emb"].flatten(0, -2)[positions_BN]
    features_BTD = shortcut(given["prev_feature"], embedded_BND, given["mask_ratio"])
    return compare({"feature": features_BTD}, case.group("out"))


def build(case: Case) -> Shortcut:
    """The case's own shortcut. The weights tell what the config does not: whether time conditions it."""
    sizes, state = case.config, case.group("state")
    config = infer_shortcut_config(state, num_heads=sizes["num_heads"], source=case.name)
    found = (config.width, config.bottleneck_width, config.num_blocks)
    told = (sizes["hidden_dim"], round(sizes["hidden_dim"] / sizes["bottleneck_ratio"]), sizes["n_block"])
    if found != told:
        raise ValueError(
            f"{case.name}: config says width, bottleneck and blocks {told}, the weights say {found}"
        )
    with torch.device("meta"):
        shortcut = Shortcut(config)
    load_strict(shortcut, state, source=case.name)
    return shortcut.eval()
