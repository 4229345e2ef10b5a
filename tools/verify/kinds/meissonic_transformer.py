"""The Meissonic transformer: logits of recorded canvases, prompts, micro-conditions and times."""

import torch

from swiftmask.core.files import load_strict
from swiftmask.models.meissonic.network import Transformer, TransformerConfig
from swiftmask.models.meissonic.rotary import rotary_at
from verify.cases import Case, Check, compare


def check(case: Case) -> list[Check]:
    transformer, given = build(case), case.group("in")
    features_BLD = transformer(
        given["tokens"],
        transformer.condition(given["encoder_hidden_states"], given["pooled"], given["micro_conds"]),
        given["timestep"],
        rotary_at(torch.cat([given["txt_ids"], given["img_ids"]]), transformer.config.rotary_axes),
    )
    logits_BKL = transformer.logits(features_BLD).transpose(1, 2)
    return compare({"logits": logits_BKL.unflatten(2, given["tokens"].shape[1:])}, case.group("out"))


def build(case: Case) -> Transformer:
    """The case's own transformer: sizes from its config, weights from its `state.*`."""
    sizes, state = case.config, case.group("state")
    if sizes["downsample"] != sizes["upsample"]:
        raise ValueError(f"{case.name}: expected downsample and upsample both on or both off")
    config = TransformerConfig(
        num_heads=sizes["num_attention_heads"],
        head_width=sizes["attention_head_dim"],
        num_double_blocks=sizes["num_layers"],
        num_single_blocks=sizes["num_single_layers"],
        text_width=sizes["joint_attention_dim"],
        codebook_size=sizes["codebook_size"],
        vocabulary_size=sizes["vocab_size"],
        rotary_axes=tuple(sizes["axes_dims_rope"]),
        downsample=sizes["downsample"],
    )
    with torch.device("meta"):
        transformer = Transformer(config)
    load_strict(transformer, state, source=case.name)
    return transformer.eval()
