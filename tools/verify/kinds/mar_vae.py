"""MAR's KL autoencoder: moments of recorded images, images of recorded (unscaled) latents."""

import torch

from swiftmask.core.files import load_strict
from swiftmask.models.mar.codec import KLCodec
from swiftmask.models.mar.weights import infer_kl_config
from verify.cases import Case, Check, compare


def check(case: Case) -> list[Check]:
    codec, given = build(case), case.group("in")
    outputs = {"moments": codec.moments(given["image"]), "image": codec.decode_latent(given["latent"])}
    return compare(outputs, case.group("out"))


def build(case: Case) -> KLCodec:
    """The case's own codec. The weights tell what the config does not: which levels have attention."""
    sizes, state = case.config, case.group("state")
    config = infer_kl_config(state, source=case.name)
    found = (config.ch, list(config.ch_mult), config.num_res_blocks, config.z_channels)
    told = (sizes["ch"], list(sizes["ch_mult"]), sizes["num_res_blocks"], sizes["z_channels"])
    if found != told:
        raise ValueError(
            f"{case.name}: config says ch, ch_mult, blocks and z {told}, the weights say {found}"
        )
    with torch.device("meta"):
        codec = KLCodec(config)
    load_strict(codec, state, source=case.name)
    return codec.eval()
