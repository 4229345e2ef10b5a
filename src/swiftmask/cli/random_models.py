"""Models of the released sizes with random weights, as speed does not depend on the weights.

Codecs stay on the meta device, since no decode step runs them. Meissonic's text encoder is a stand-in of one
layer and Lumina-DiMOO's tokenizer one of fixed length: prompts are encoded before the first step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from swiftmask.registry import suggestion

if TYPE_CHECKING:
    from swiftmask.methods.marval import Student
    from swiftmask.methods.shortcut import AnyShortcut
    from swiftmask.models.lumina_dimoo.network import Backbone
    from swiftmask.models.meissonic.network import Transformer
    from swiftmask.pipeline import Pipeline

DIMOO = "lumina-dimoo"


@dataclass(frozen=True, slots=True)
class _Size:
    """How a released size is built.

    Attributes:
        build: `build(name, device, dtype, layers)`.
        steps: of a decode, as its authors use it.
        full_steps: of those, with the released shortcut.
    """

    build: Callable[[str, torch.device, torch.dtype, int | None], nn.Module]
    steps: int
    full_steps: int | None = None


def random_names() -> tuple[str, ...]:
    """What `random_pipeline` can build."""
    return tuple(_SIZES)


def random_pipeline(
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    layers: int | None = None,
) -> "Pipeline":
    """The full model of a released size.

    Args:
        layers: blocks of Lumina-DiMOO, whose 32 take 16 GB in bfloat16; None is all.

    Errors: ValueError for an unknown size, or layers of another model.
    """
    from swiftmask.pipeline import Pipeline

    if name not in _SIZES:
        raise ValueError(
            f"unknown released size {name!r}{suggestion(name, _SIZES)}: choose one of {', '.join(_SIZES)}"
        )
    if layers is not None and (name != DIMOO or layers < 1):
        raise ValueError(f"layers is a positive number of blocks of {DIMOO}, got {layers} for {name}")
    size = _SIZES[name]
    model: Any = size.build(name, torch.device(device), dtype, layers).eval().requires_grad_(False)
    return Pipeline(model, name=name, steps=size.steps)


def random_shortcut(pipeline: "Pipeline") -> "tuple[AnyShortcut, int] | None":
    """The released shortcut's architecture for a random model and how many steps stay full, or None."""
    from swiftmask.methods.shortcut import weights

    full_steps = _SIZES[pipeline.name].full_steps
    if full_steps is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: AnyShortcut = (
            weights.RotaryShortcut(weights.RELEASED_ROTARY_SHORTCUT)
            if pipeline.name == DIMOO
            else weights.Shortcut(weights.RELEASED_SHORTCUT)
        )
    return network.requires_grad_(False), full_steps


def untrained_student(pipeline: "Pipeline") -> "Student | None":
    """A MARVAL student that is its teacher's copy, sharing the weights; None without a diffusion head."""
    from swiftmask.methods.marval import make_student

    model: Any = pipeline.model
    return make_student(model, ()) if hasattr(model, "denoise") else None


def meissonic_around(transformer: "Transformer", *, side: int = 32, text_layers: int = 1) -> Any:
    """A Meissonic whose blocks see a grid of `side` squared tokens; 32 at both released sizes.

    Args:
        text_layers: of the text encoder, which has 24 in the released one.
    """
    from swiftmask.core.vq_codec import VQConfig, build_vq_codec
    from swiftmask.models.meissonic import Meissonic
    from swiftmask.models.meissonic.text import TextConfig, build_text_encoder, word_tokenizer

    sizes = transformer.config
    text = TextConfig(
        vocab_size=5,
        hidden_size=sizes.text_width,
        intermediate_size=4 * sizes.text_width,
        projection_dim=sizes.width,
        num_hidden_layers=text_layers,
        num_attention_heads=max(1, sizes.text_width // 64),
        eos_token_id=0,
    )
    codec = VQConfig(
        block_out_channels=(128, 256, 256, 512, 768),
        layers_per_block=2,
        latent_channels=64,
        num_vq_embeddings=sizes.codebook_size,
    )
    with transformer.device:
        encoder = build_text_encoder(
            text, word_tokenizer(["image", "a"], length=text.max_position_embeddings)
        )
    with torch.device("meta"):
        decoder = build_vq_codec(codec)
    pixels = side * sizes.stride * codec.downscale
    encoder = encoder.to(next(transformer.parameters()).dtype)
    return Meissonic(transformer, encoder, decoder, size=(pixels, pixels)).requires_grad_(False)


def dimoo_around(backbone: "Backbone") -> Any:
    """A Lumina-DiMOO of 512x512 pixels that reads 80 tokens of any prompt."""
    from swiftmask.core.vq_codec import VQConfig, build_vq_codec
    from swiftmask.models.lumina_dimoo import LuminaDiMOO
    from swiftmask.models.lumina_dimoo.layout import Vocabulary

    codec = VQConfig(
        block_out_channels=(128, 256, 256, 512, 768),
        layers_per_block=2,
        latent_channels=64,
        num_vq_embeddings=8192,
    )
    with torch.device("meta"):
        decoder = build_vq_codec(codec)
    return LuminaDiMOO(backbone, decoder, FixedPrompts(), vocabulary=Vocabulary(), grid=(32, 32))


@dataclass(frozen=True, slots=True)
class FixedPrompts:
    """A stand-in for a tokenizer: any prompt is `length` tokens."""

    length: int = 80
    null_ids: tuple[int, ...] = tuple(range(1, 15))

    def ids(self, text: str) -> list[int]:
        return list(range(1, 1 + self.length))

    def settings(self) -> Any:
        """Errors: ValueError, as there is nothing to write."""
        raise ValueError("a stand-in for a tokenizer cannot be saved")

    def save(self, folder: Path) -> None:
        """Nothing: `settings` refuses before."""


def _maskgit(name: str, device: torch.device, dtype: torch.dtype, layers: int | None) -> nn.Module:
    from swiftmask.models.maskgit import MaskGIT
    from swiftmask.models.maskgit.codec import VQGAN
    from swiftmask.models.maskgit.weights import RELEASED_VQGAN, random_transformer

    with torch.device("meta"):
        codec = VQGAN(RELEASED_VQGAN)
    with device:
        transformer = random_transformer(name)
    return MaskGIT(transformer.to(dtype), codec)


def _mar(name: str, device: torch.device, dtype: torch.dtype, layers: int | None) -> nn.Module:
    from swiftmask.models.mar import MAR
    from swiftmask.models.mar.codec import KLCodec
    from swiftmask.models.mar.weights import RELEASED_KL, random_mar

    with torch.device("meta"):
        codec = KLCodec(RELEASED_KL)
    with device:
        network = random_mar(name)
    return MAR(network.to(dtype), codec)


def _meissonic(name: str, device: torch.device, dtype: torch.dtype, layers: int | None) -> nn.Module:
    from swiftmask.models.meissonic.weights import random_transformer

    with device:
        transformer = random_transformer(name)
    return meissonic_around(transformer.to(dtype))


def _dimoo(name: str, device: torch.device, dtype: torch.dtype, layers: int | None) -> nn.Module:
    from swiftmask.models.lumina_dimoo.weights import RELEASED, random_backbone

    depth = RELEASED.depth if layers is None else layers
    return dimoo_around(random_backbone(depth, dtype=dtype, device=device))


_SIZES = {
    "maskgit-256": _Size(_maskgit, 32, 12),
    "maskgit-512": _Size(_maskgit, 32, 12),
    "mar-b": _Size(_mar, 64),
    "mar-l": _Size(_mar, 64),
    "mar-h": _Size(_mar, 64),
    "meissonic-512": _Size(_meissonic, 64),
    "meissonic-1024": _Size(_meissonic, 64),
    DIMOO: _Size(_dimoo, 64, 11),
}
