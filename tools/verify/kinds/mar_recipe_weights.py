"""MAR and its codec with weights that are not stored but follow from their names (an `.npz` of arrays alone).

Groups by first letter: A backbone, B head, C guided head, D training loss, E reverse chains, F whole decodes,
H tables, V codec. An `.npz` has no config, so sizes are read off the arrays where they tell; the rest are the
recipe's own, and a `NAME.json` beside it with sizes under upstream's names wins over both.
"""

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swiftmask.core.files import load_strict
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.tokens import guide
from swiftmask.models.mar.codec import KLCodec, KLConfig
from swiftmask.models.mar.diffusion import (
    NUM_TIMESTEPS,
    Process,
    respaced,
    respaced_timesteps,
    training_process,
)
from swiftmask.models.mar.generator import GuidanceSchedule
from swiftmask.models.mar.network import Network
from verify.cases import Case, Check, compare
from verify.kinds.mar import (
    backbone,
    network_config,
    reverse_chain_of,
    training_loss,
    whole_decode,
)

_SIZES = {
    "encoder_depth": 2,
    "encoder_num_heads": 4,
    "decoder_depth": 2,
    "decoder_num_heads": 4,
    "mlp_ratio": 4.0,
    "patch_size": 1,
    "vae_stride": 1,
    "class_num": 10,
    "diffloss_d": 2,
    "diffloss_w": 96,
    "ch": 32,
}
_DECODES: dict[str, tuple[float, GuidanceSchedule]] = {
    "F": (2.9, "linear"),
    "F1": (1.0, "linear"),
    "F2": (3.0, "constant"),
}
_GUIDED_HEAD = 2.5
_HALF_UNIT = ("class_emb.weight", "fake_latent", "mask_token")


def check(case: Case) -> list[Check]:
    arrays, sizes = case.tensors, {**_SIZES, **_inferred(case.tensors), **case.config}
    network = Network(network_config(sizes)).eval()
    load_recipe(network)
    outputs = _parts(network, arrays) | _tables(arrays) | _codec(arrays, sizes)
    for name in ("E", "E1"):
        outputs[f"{name}_out"] = _chain(network, arrays, name)
    for name in _DECODES:
        outputs[f"{name}_latents"] = _decode(network, arrays, name)
    expected = {key: arrays[key] for key in sorted(arrays) if _is_output(key)}
    expected["E_out"] = expected["E_out"][: len(outputs["E_out"])]
    return compare(outputs, expected)


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normals that follow from a name alone: float32."""
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(generator.standard_normal(shape).astype(np.float32))


def load_recipe(module: nn.Module) -> None:
    """Give `module` the weights of the recipe; names are its own state-dict keys."""
    state = {key: _weight(key, tuple(value.shape)) for key, value in module.state_dict().items()}
    load_strict(module, state, source="the recipe")


def _weight(name: str, shape: tuple[int, ...]) -> Tensor:
    values = drawn(name, shape)
    if name in _HALF_UNIT or name.endswith("_pos_embed_learned"):
        return 0.5 * values
    if len(shape) == 1:
        return 1 + 0.1 * values if name.endswith(".weight") else 0.1 * values
    return values / math.sqrt(math.prod(shape[1:]))


def _inferred(arrays: Mapping[str, Tensor]) -> dict[str, Any]:
    width, num_known = arrays["A_z"].shape[-1], int((arrays["A_mask"][0] == 0).sum())
    return {
        "encoder_embed_dim": arrays["A_encoder_out"].shape[-1],
        "decoder_embed_dim": width,
        "img_size": math.isqrt(arrays["A_tokens"].shape[1]),
        "vae_embed_dim": arrays["A_tokens"].shape[2],
        "buffer_size": arrays["A_encoder_out"].shape[1] - num_known,
    }


def _is_output(key: str) -> bool:
    return (
        re.search(r"^A_(encoder_out|z|z_uncond)$|_out(_2p5)?$|^D_(xt|mse|vb|loss)$|_latents$|^H", key)
        is not None
    )


def _parts(network: Network, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Groups A to D."""
    found = backbone(network, arrays["A_tokens"], arrays["A_mask"], arrays["A_labels"])
    context_XD, timesteps_X = arrays["B_c"], arrays["B_t"]
    loss = training_loss(network.head, arrays["D_x0"], arrays["D_eps"], timesteps_X, context_XD)
    return {
        "A_encoder_out": found["encoder"],
        "A_z": found["z"],
        "A_z_uncond": found["z_unconditional"],
        "B_out": network.head(arrays["B_xt"], timesteps_X, context_XD),
        "C_cfg_out_2p5": _guided_head(network, arrays),
        "D_xt": loss["x_t"],
        "D_mse": loss["mse"],
        "D_vb": loss["vb"],
        "D_loss": loss["total"],
    }


def _guided_head(network: Network, arrays: Mapping[str, Tensor]) -> Tensor:
    """Both branches on the tokens of the first: guided noise for both, each with its own variance."""
    half = len(arrays["B_xt"]) // 2
    noisy_XC = arrays["B_xt"][:half].repeat(2, 1)
    predicted_GXE = network.head(noisy_XC, arrays["B_t"], arrays["B_c"]).unflatten(0, (2, half))
    noise_GXC, spread_GXC = predicted_GXE.chunk(2, dim=-1)
    guided_XC = guide(noise_GXC, _GUIDED_HEAD).repeat(2, 1)
    return torch.cat([guided_XC, spread_GXC.flatten(0, 1)], dim=-1)


def _chain(network: Network, arrays: Mapping[str, Tensor], name: str) -> Tensor:
    """E is guided and tempered as its arrays say, E1 neither."""
    guided = name == "E"
    guidance, temperature = (float(arrays["E_cfg"]), float(arrays["E_temp"])) if guided else (1.0, 1.0)
    noises = [arrays[f"{name}_noise_init"], *arrays[f"{name}_noise_steps"]]
    return reverse_chain_of(network.head, noises, arrays["E_z"], guidance=guidance, temperature=temperature)


def _decode(network: Network, arrays: Mapping[str, Tensor], name: str) -> Tensor:
    guidance, guidance_schedule = _DECODES[name]
    num_denoising = len(arrays["E_noise_steps"])
    return whole_decode(
        network,
        arrays[f"{name}_labels"].tolist(),
        arrays[f"{name}_orders"],
        [arrays[key] for key in sorted(arrays) if key.startswith(f"{name}_noise_")],
        num_denoising=num_denoising,
        sampling=SamplingOptions(guidance=guidance, temperature=1.0, denoising_steps=num_denoising),
        guidance_schedule=guidance_schedule,
    )


def _tables(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Group H: the tables of every number of steps there is."""
    counts = {int(found[1]) for key in arrays if (found := re.match(r"H(\d+)_", key))}
    return {key: value for count in counts for key, value in _tables_of(count).items()}


def _tables_of(count: int) -> dict[str, Tensor]:
    whole = count == NUM_TIMESTEPS
    process: Process = training_process() if whole else respaced(respaced_timesteps(count))
    return {
        f"H{count}_betas": process.betas_S,
        f"H{count}_alphas_cumprod": process.signal_S,
        f"H{count}_posterior_variance": process.posterior_variance_S,
        f"H{count}_posterior_log_variance_clipped": process.posterior_log_variance_S,
        f"H{count}_posterior_mean_coef1": process.mean_from_clean_S,
        f"H{count}_posterior_mean_coef2": process.mean_from_noisy_S,
        f"H{count}_map": process.timesteps_S,
    }


def _codec(arrays: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Group V: encoder and decoder each on its own, so neither has a prefix in the names of its weights."""
    pixels, latent = arrays["V_dec_out"].shape, arrays["V_enc_out"].shape
    z_channels = latent[1] // 2
    config = KLConfig(
        ch=sizes["ch"],
        ch_mult=(1, 1, 2, 2, 4),
        num_res_blocks=2,
        attn_resolutions=(16,),
        resolution=256,
        z_channels=z_channels,
    )
    codec = KLCodec(config).eval()
    load_recipe(codec.encoder)
    load_recipe(codec.decoder)
    return {
        "V_enc_out": codec.encoder(drawn("input.img", tuple(pixels))),
        "V_dec_out": codec.decoder(drawn("input.lat", (latent[0], z_channels, *latent[2:]))),
    }
