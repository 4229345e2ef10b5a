"""The MaskGIT transformer: logits and features of recorded token grids and labels."""

import torch

from swiftmask.core.files import load_strict
from swiftmask.models.maskgit.network import Transformer, TransformerConfig
from verify.cases import Case, Check, compare


def check(case: Case) -> list[Check]:
    transformer = build(case)
    given = case.group("in")
    sizes = transformer.config
    class_B = torch.where(given["drop_label"].bool(), sizes.null_id, sizes.first_class_id + given["labels"])
    features_BTD = transformer(torch.cat([given["tokens"].flatten(1), class_B[:, None]], dim=1))
    outputs = {"feature": features_BTD, "logits": transformer.logits(features_BTD[:, :-1])}
    return compare(outputs, case.group("out"))


def build(case: Case) -> Transformer:
    """The case's own transformer: sizes from its config, weights from its `state.*`."""
    sizes, state = case.config, case.group("state")
    config = TransformerConfig(
        width=sizes["hidden_dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        mlp_width=sizes["mlp_dim"],
        codebook_size=sizes["codebook_size"],
        num_classes=sizes["nclass"],
        grid=sizes["grid"],
    )
    with torch.device("meta"):
        transformer = Transformer(config)
    load_strict(transformer, state, source=case.name)
    return transformer.eval()
