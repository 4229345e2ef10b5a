"""The VQGAN: images of recorded codes, latents and codes of recorded pictures."""

from collections.abc import Mapping
from typing import Any

import torch

from swiftmask.core.files import load_strict
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from verify.cases import Case, Check, compare


def check(case: Case) -> list[Check]:
    codec, given = build(case), case.group("in")
    outputs = {}
    if "codes" in given:
        outputs["decoded"] = codec.decode_code(given["codes"])
    if "image" in given:
        outputs |= {
            "pre_quant": codec.encode_latent(given["image"]),
            "indices": codec.encode_code(given["image"]),
        }
    expected = case.group("out")
    if "indices" in expected and "indices" in outputs:
        outputs["indices"] = outputs["indices"].reshape(expected["indices"].shape)
    return compare(outputs, expected)


def build(case: Case) -> VQGAN:
    """The case's own codec: sizes from its `ddconfig`, weights from its `state.*`."""
    with torch.device("meta"):
        codec = VQGAN(config_of(case.config))
    load_strict(codec, case.group("state"), source=case.name)
    return codec.eval()


def config_of(sizes: Mapping[str, Any]) -> VQGANConfig:
    """Of an upstream `model.yaml`, whose `dropout` and `double_z` must be off."""
    ddconfig = sizes["ddconfig"]
    if ddconfig.get("double_z") or ddconfig.get("dropout"):
        raise ValueError("a VQGAN with double_z or dropout is not supported: set both off in ddconfig")
    counts = ("ch", "num_res_blocks", "resolution", "z_channels", "in_channels", "out_ch")
    return VQGANConfig(
        **{key: ddconfig[key] for key in counts},
        ch_mult=tuple(ddconfig["ch_mult"]),
        attn_resolutions=tuple(ddconfig["attn_resolutions"]),
        n_embed=sizes["n_embed"],
        embed_dim=sizes["embed_dim"],
    )
