"""The VQGAN: pictures of recorded codes, latents and codes of recorded pictures."""

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
    sizes = case.config
    config = VQGANConfig.from_ddconfig(
        sizes["ddconfig"], n_embed=sizes["n_embed"], embed_dim=sizes["embed_dim"]
    )
    with torch.device("meta"):
        codec = VQGAN(config)
    load_strict(codec, case.group("state"), source=case.name)
    return codec.eval()
