"""Weights of Meissonic on disk: the released folders, a folder of our own, and strict loading.

The released folders (`MeissonFlow/Meissonic`, 1024 pixels, and `Collov-Labs/Monetico`, 512 pixels; fine-tunes
share the layout) hold `transformer/`, `vqvae/`, `text_encoder/`, `tokenizer/` and `scheduler/`. Their
`model_index.json` names classes of the authors' own code and is not followed: a folder's name says what it
holds. Sizes are read off the tensors, as published configs have disagreed with their weights; what no tensor
tells comes from the configs.

The images published of the 1024-pixel model were not generated with its own `text_encoder/` but with
`laion/CLIP-ViT-H-14-laion2B-s32B-b79K`; those of Monetico were generated with its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from swiftmask.core.files import (
    count_modules,
    load_parts,
    load_strict,
    random_network,
    read_model_settings,
    require_keys,
)
from swiftmask.core.optional import library
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.reading import State, read_tensors
from swiftmask.core.settings import about, read_json, settings_of
from swiftmask.core.vq_codec import VQCodec, VQConfig, build_vq_codec, load_vq_codec
from swiftmask.models.meissonic.network import Transformer, TransformerConfig
from swiftmask.models.meissonic.text import (
    TextConfig,
    TextEncoder,
    Tokenizer,
    build_text_encoder,
    read_tokenizer,
)

TOKENIZER = "tokenizer"
_RELEASED_AXES = {128: (16, 56, 56)}
"""Rotary axes of the released head width."""

_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
_WHOLE = "download the whole folder"
_TEXT_WEIGHTS = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin")


class Parts(NamedTuple):
    """The networks of a model, float32, on the CPU, in eval mode."""

    transformer: Transformer
    text_encoder: TextEncoder
    codec: VQCodec


def _released_transformer(*, downsample: bool) -> TransformerConfig:
    return TransformerConfig(
        num_heads=8,
        head_width=128,
        num_double_blocks=14,
        num_single_blocks=28,
        text_width=1024,
        codebook_size=8192,
        vocabulary_size=8256,
        rotary_axes=_RELEASED_AXES[128],
        downsample=downsample,
    )


RELEASED = {
    "meissonic-512": _released_transformer(downsample=False),
    "meissonic-1024": _released_transformer(downsample=True),
}


random_transformer = partial(random_network, Transformer, RELEASED)


def infer_transformer_config(
    state: State, *, rotary_axes: Sequence[int] | None = None, source: str = "these weights"
) -> TransformerConfig:
    """Sizes from the shapes, which do not tell how a head's channels are shared among the rotary axes: the
    released heads are known, others need it given.
    """
    head, embeddings = "transformer_blocks.0.attn.norm_q.weight", "embed.embeddings.weight"
    shapes = {head: 1, embeddings: 2, "context_embedder.weight": 2, "mlm_layer.conv2.weight": 4}
    require_keys(state, shapes, source, "the Meissonic transformer")
    vocabulary_size, width = state[embeddings].shape
    head_width = state[head].shape[0]
    axes = _RELEASED_AXES.get(head_width) if rotary_axes is None else rotary_axes
    if axes is None:
        raise ValueError(f"{source}: no released Meissonic has heads of {head_width}: pass its rotary_axes")
    with about(source):
        return TransformerConfig(
            num_heads=width // head_width,
            head_width=head_width,
            num_double_blocks=count_modules(state, r"transformer_blocks\.(\d+)\."),
            num_single_blocks=count_modules(state, r"single_transformer_blocks\.(\d+)\."),
            text_width=state["context_embedder.weight"].shape[1],
            codebook_size=state["mlm_layer.conv2.weight"].shape[0],
            vocabulary_size=vocabulary_size,
            rotary_axes=tuple(axes),
            downsample="down_block.downsample.conv.weight" in state,
        )


def read_released(folder: str | Path, *, text_encoder: str | Path | None = None) -> Parts:
    """The networks of a released folder, every key and shape checked.

    Args:
        text_encoder: folder of another CLIP text encoder, a whole CLIP model's too; None is the folder's own.

    Errors: FileNotFoundError or ValueError naming the missing, damaged or foreign file, key or shape.
    """
    folder = Path(folder)
    transformer = read_released_transformer(folder / "transformer")
    _check_scheduler(folder / "scheduler" / "scheduler_config.json", transformer.config)
    encoder_folder = folder / "text_encoder" if text_encoder is None else Path(text_encoder).expanduser()
    encoder = read_text_encoder(encoder_folder, folder / TOKENIZER)
    return Parts(transformer, encoder, _read_codec(folder / "vqvae"))


def read_released_transformer(path: str | Path) -> Transformer:
    """The transformer from its folder or a weights file alone; training prefixes are dropped."""
    path = Path(path)
    content = read_json(path / "config.json") if (path / "config.json").exists() else {}
    named = content.get("_class_name", "Transformer2DModel")
    if named != "Transformer2DModel":
        raise ValueError(
            f"{path} holds a {named}, another architecture (Muddit has one): expected the Transformer2DModel "
            "of Meissonic or Monetico"
        )
    file = path if path.is_file() else _first_file(path, _WEIGHTS)
    state = read_tensors(file)
    axes = content.get("axes_dims_rope")
    config = infer_transformer_config(state, rotary_axes=axes, source=str(file))
    with torch.device("meta"):
        transformer = Transformer(config)
    load_strict(transformer, state, source=str(file))
    return transformer.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Config of a Meissonic model folder. None leaves it to the family.

    Attributes:
        size: height and width of the images.
    """

    model: Literal["meissonic"]
    size: tuple[int, int]
    transformer: TransformerConfig
    text_encoder: TextConfig
    codec: VQConfig
    sampling: SamplingOptions | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def read_model(folder: str | Path) -> tuple[Parts, Settings]:
    """The networks and the folder's settings."""
    folder = Path(folder)
    settings = read_model_settings(Settings, folder, Parts._fields)
    text = settings.text_encoder
    tokenizer = read_tokenizer(folder / TOKENIZER, length=text.max_position_embeddings)
    with torch.device("meta"):
        transformer, codec = Transformer(settings.transformer), build_vq_codec(settings.codec)
    parts = Parts(transformer, _empty_text_encoder(text, tokenizer), codec)
    load_parts(folder / "model.safetensors", networks_of(parts))
    return parts, settings


def networks_of(parts: Parts) -> dict[str, torch.nn.Module]:
    """The modules that hold the weights, by the prefix they have in our file."""
    return {
        "transformer": parts.transformer,
        "text_encoder": parts.text_encoder.clip,
        "codec": parts.codec.vq,
    }


def _empty_text_encoder(config: TextConfig, tokenizer: Tokenizer) -> TextEncoder:
    # Its counting positions are in no file: they must not be left on the meta device with the weights.
    with library("accelerate", "the text encoder of Meissonic").init_empty_weights():
        return build_text_encoder(config, tokenizer)


def read_text_encoder(folder: Path, tokenizer_folder: Path | None = None) -> TextEncoder:
    """A CLIP text encoder, also of a whole CLIP model; its tokenizer lies beside it unless told otherwise."""
    file = _first_file(folder, _TEXT_WEIGHTS)
    state = {
        key: value
        for key, value in read_tensors(file).items()
        if key.startswith(("text_model.", "text_projection.")) and not key.endswith(".position_ids")
    }
    config = _infer_text_config(state, read_json(folder / "config.json", expected=_WHOLE), source=str(file))
    tokenizer = read_tokenizer(tokenizer_folder or folder, length=config.max_position_embeddings)
    encoder = _empty_text_encoder(config, tokenizer)
    load_strict(encoder.clip, state, source=str(file))
    return encoder


def _infer_text_config(state: State, content: Mapping[str, Any], *, source: str) -> TextConfig:
    """Sizes from the shapes; heads, activation and the like from the config, also a whole CLIP model's."""
    embeddings = "text_model.embeddings.token_embedding.weight"
    positions = "text_model.embeddings.position_embedding.weight"
    expand, projection = "text_model.encoder.layers.0.mlp.fc1.weight", "text_projection.weight"
    matrices: dict[str, int] = dict.fromkeys((embeddings, positions, expand, projection), 2)
    require_keys(state, matrices, source, "a CLIP text encoder with projection")
    known = {field.name for field in fields(TextConfig)}
    told = {key: value for key, value in content.get("text_config", content).items() if key in known}
    vocab_size, hidden_size = state[embeddings].shape
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": state[expand].shape[0],
        "projection_dim": state[projection].shape[0],
        "num_hidden_layers": count_modules(state, r"text_model\.encoder\.layers\.(\d+)\."),
        "max_position_embeddings": state[positions].shape[0],
    }
    # A config that leaves the activation or the heads out means CLIP's own.
    found = {"hidden_act": "quick_gelu", "num_attention_heads": 8, **told, **sizes}
    return settings_of(TextConfig, found, source=f"the config.json of {source}")


def _read_codec(folder: Path) -> VQCodec:
    path = folder / "config.json"
    config = VQConfig.from_settings(read_json(path, expected=_WHOLE), source=str(path))
    file = _first_file(folder, _WEIGHTS)
    return load_vq_codec(config, read_tensors(file), source=str(file))


def _check_scheduler(path: Path, config: TransformerConfig) -> None:
    """Released models sample by the cosine, with the last id for the mask: anything else is another model."""
    content = read_json(path) if path.exists() else {}
    curve, mask_id = content.get("masking_schedule", "cosine"), content.get("mask_token_id", config.mask_id)
    if (curve, mask_id) != ("cosine", config.mask_id):
        raise ValueError(
            f"{path}: expected a cosine schedule and mask id {config.mask_id}, got {curve} and {mask_id}"
        )


def _first_file(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"no weights in {folder}: expected {' or '.join(names)}")
