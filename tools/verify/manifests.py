"""Manifests: every key and shape of a real checkpoint against our model, built on the meta device."""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from swiftmask.methods.shortcut import RotaryShortcut, Shortcut
from swiftmask.methods.shortcut.weights import infer_rotary_config, infer_shortcut_config
from swiftmask.models.lumina_dimoo.network import Backbone
from swiftmask.models.lumina_dimoo.weights import infer_backbone_config
from swiftmask.models.mar.codec import KLCodec
from swiftmask.models.mar.network import Network
from swiftmask.models.mar.weights import infer_kl_config, infer_network_config
from swiftmask.models.maskgit.codec import VQGAN
from swiftmask.models.maskgit.network import Transformer
from swiftmask.models.maskgit.weights import infer_transformer_config, infer_vqgan_config
from swiftmask.models.meissonic import network as meissonic
from swiftmask.models.meissonic.weights import infer_transformer_config as infer_meissonic_config
from verify.cases import MANIFESTS, Case, Check

State = Mapping[str, Tensor]


def check(case: Case) -> list[Check]:
    name = case.name.removeprefix(f"{MANIFESTS}/")
    build = next((build for pattern, build in BUILDERS.items() if re.match(pattern, name)), None)
    if build is None:
        raise ValueError(
            "unknown kind of manifest: there is maskgit_*transformer, maskgit_vqgan, maskgit_shortcut, "
            "mar_kl16, mar_*, meissonic_*, lumina_dimoo, dimoo_shortcut*"
        )
    with torch.device("meta"):
        state = {key: torch.empty(tuple(shape)) for key, shape in case.content["tensors"].items()}
        module = build(state)
    ours = module.state_dict()
    missing, unexpected = state.keys() - ours.keys(), ours.keys() - state.keys()
    reshaped = {key for key in state.keys() & ours.keys() if state[key].shape != ours[key].shape}
    count = sum(parameter.numel() for parameter in module.parameters())
    wrong = sorted(missing | unexpected | reshaped)
    parameters = int(case.content["parameters"])
    return [
        Check(
            "keys and shapes",
            float(len(wrong)),
            0.0,
            not wrong,
            f"differ: {', '.join(wrong[:4])}" if wrong else "",
        ),
        Check(
            "parameters",
            float(abs(count - parameters)),
            0.0,
            count == parameters,
            "" if count == parameters else f"expected {parameters:,}, got {count:,}",
        ),
    ]


def _transformer(state: State) -> nn.Module:
    # No shape depends on the heads, nor on where in the vocabulary the codes end.
    vocabulary_size = state["tok_emb.weight"].shape[0]
    return Transformer(infer_transformer_config(state, num_heads=1, codebook_size=vocabulary_size - 3))


def _vqgan(state: State) -> nn.Module:
    return VQGAN(infer_vqgan_config(state))


def _shortcut(state: State) -> nn.Module:
    return Shortcut(infer_shortcut_config(state, num_heads=1))


def _mar(state: State) -> nn.Module:
    return Network(infer_network_config(state, num_heads=1))


def _kl(state: State) -> nn.Module:
    return KLCodec(infer_kl_config(state))


def _meissonic(state: State) -> nn.Module:
    return meissonic.Transformer(infer_meissonic_config(state))


def _lumina_dimoo(state: State) -> nn.Module:
    return Backbone(infer_backbone_config(state))


def _rotary_shortcut(state: State) -> nn.Module:
    return RotaryShortcut(infer_rotary_config(state))


BUILDERS: dict[str, Callable[[State], nn.Module]] = {
    r"maskgit.*transformer": _transformer,
    r"maskgit.*vqgan": _vqgan,
    r"maskgit.*shortcut": _shortcut,
    r"mar_(kl|vae)": _kl,
    r"mar_": _mar,
    r"lumina_dimoo": _lumina_dimoo,
    r"dimoo.*shortcut": _rotary_shortcut,
    r"meissonic_": _meissonic,
}
"""Which model a manifest describes, by the beginning of its name."""
