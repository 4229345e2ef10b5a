"""Weights of Lumina-DiMOO on disk: the released folder, a folder of our own, and strict loading.

The released folder (Hugging Face `Alpha-VLLM/Lumina-DiMOO`) holds sharded safetensors in bfloat16, a
tokenizer, and the codec under `vqvae/`. Every key and shape is checked from the headers; only then is memory
taken, and each tensor is read straight into its place in the wanted precision. The vocabulary is as long as
the embedding is, whatever the config says.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from swiftmask.core.files import (
    State,
    count_modules,
    first_line,
    load_parts,
    load_strict,
    read_tensors,
    require_keys,
    state_of,
    write_folder,
)
from swiftmask.core.vq_codec import VQCodec, VQConfig, build_vq_codec, load_vq_codec
from swiftmask.models.lumina_dimoo.layout import Vocabulary
from swiftmask.models.lumina_dimoo.memory import check_fits
from swiftmask.models.lumina_dimoo.network import Backbone, BackboneConfig
from swiftmask.models.lumina_dimoo.prompts import Prompts, TokenizerPrompts, read_prompts

RELEASED = BackboneConfig(width=4096, depth=32, num_heads=32, mlp_width=12288, vocabulary_size=134548)

_SIZES = ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "rope_theta", "rms_norm_eps")
"""Without a default here: upstream's own defaults are those of another model."""

_FIXED: Mapping[str, object] = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "weight_tying": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
}
_EMBEDDING = "model.transformer.wte.weight"
_BLOCK = r"model\.transformer\.blocks\.(\d+)\."


@dataclass(frozen=True, slots=True)
class Parts:
    """What a folder of ours holds; `settings` is the rest of its config."""

    backbone: Backbone
    codec: VQCodec
    prompts: Prompts
    vocabulary: Vocabulary
    grid: tuple[int, int]
    settings: Mapping[str, object]


def random_backbone(depth: int = RELEASED.depth, *, seed: int = 0) -> Backbone:
    """A backbone of the released widths with random weights, on the CPU in the default dtype: enough to
    measure speed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Backbone(replace(RELEASED, depth=depth)).eval()


def infer_backbone_config(
    state: State, settings: Mapping[str, object] | None = None, *, source: str = "these weights"
) -> BackboneConfig:
    """Sizes from the shapes; what they do not tell from upstream's `config.json`, or as released without it.

    Errors: ValueError for other weights, another architecture, or a config that says something else.
    """
    first_mlp = "model.transformer.blocks.0.ff_proj.weight"
    require_keys(
        state, (_EMBEDDING, first_mlp, "model.transformer.ff_out.weight"), source, "the LLaDA backbone"
    )
    vocabulary_size, width = state[_EMBEDDING].shape
    depth, mlp_width = count_modules(state, _BLOCK), state[first_mlp].shape[0]
    if settings is None:
        settings = _released_settings(width, depth, mlp_width)
    _check_settings(settings, (width, depth, mlp_width), source)
    return BackboneConfig(
        width=width,
        depth=depth,
        num_heads=int(str(settings["n_heads"])),
        mlp_width=mlp_width,
        vocabulary_size=vocabulary_size,
        rope_theta=float(str(settings["rope_theta"])),
        norm_eps=float(str(settings["rms_norm_eps"])),
    )


def read_released(
    folder: str | Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    grid: tuple[int, int],
) -> tuple[Backbone, VQCodec, Prompts, Vocabulary]:
    """All parts of the released folder, in eval mode. Errors: see `LuminaDiMOO.from_released`."""
    folder, device = Path(folder), torch.device(device)
    settings = _read_json(folder / "config.json")
    files = _weight_files(folder)
    headers = _headers(files)
    config = infer_backbone_config(headers, settings, source=str(folder))
    with torch.device("meta"):
        backbone = Backbone(config).eval()
    load_strict(backbone, headers, source=str(folder))
    vocabulary = Vocabulary()
    if settings.get("mask_token_id", vocabulary.mask) != vocabulary.mask:
        raise ValueError(
            f"{folder}: config.json says mask_token_id {settings['mask_token_id']}, "
            f"expected {vocabulary.mask}: this is another LLaDA"
        )
    prompts = TokenizerPrompts.from_folder(folder)
    check_fits(config, grid, dtype, device)
    _fill(backbone.to(dtype).to_empty(device=device), files)
    return backbone, read_released_codec(folder / "vqvae").to(device), prompts, vocabulary


def read_released_codec(folder: str | Path) -> VQCodec:
    """The codec of diffusers' layout, in float32 on the CPU."""
    path, file = Path(folder) / "config.json", Path(folder) / "diffusion_pytorch_model.safetensors"
    config = VQConfig.from_settings(_read_json(path), source=str(path))
    return load_vq_codec(config, read_tensors(file), source=str(file))


def write_model(
    folder: str | Path,
    backbone: Backbone,
    codec: VQCodec,
    *,
    settings: Mapping[str, object],
    provenance: Mapping[str, object],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the folder that `read_model` reads, each file whole or not at all."""
    sizes = {"backbone": asdict(backbone.config), "codec": asdict(codec.config)}
    state = state_of({"backbone": backbone, "codec": codec})
    config = {"model": "lumina_dimoo", **settings, **sizes}
    write_folder(folder, state, config=config, provenance=provenance, dtype=dtype)


def read_model(folder: str | Path) -> Parts:
    """All parts of a folder of ours: float32, on the CPU, in eval mode."""
    folder = Path(folder)
    path = folder / "config.json"
    settings = _read_json(path)
    try:
        vocabulary = Vocabulary(**settings.pop("vocabulary"))
        backbone_config = BackboneConfig(**settings.pop("backbone"))
        codec_config = VQConfig.from_settings(settings.pop("codec"), source=str(path))
        height, width = settings.pop("grid")
        prompts = read_prompts(folder, settings.pop("prompts"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no config of a lumina_dimoo model ({first_line(error)})") from error
    with torch.device("meta"):
        backbone, codec_module = Backbone(backbone_config), build_vq_codec(codec_config)
    load_parts(folder / "model.safetensors", {"backbone": backbone, "codec": codec_module})
    return Parts(backbone, codec_module, prompts, vocabulary, (height, width), settings)


def _fill(backbone: Backbone, files: Mapping[str, Path]) -> None:
    """Read every tensor into its place. The state dict is views, of joined projections too.

    A file is opened for each tensor: what was read stays mapped, and counted, until it is closed.
    """
    for key, place in backbone.state_dict().items():
        with _opened(files[key]) as file:
            place.copy_(file.get_tensor(key))


def _weight_files(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        with _opened(single) as file:
            return dict.fromkeys(file.keys(), single)
    if not index.is_file():
        raise FileNotFoundError(f"no weights in {folder}: expected {index.name} with its shards")
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise ValueError(f"{index} is damaged: it has no weight_map, download it again")
    missing = sorted({str(name) for name in names.values() if not (folder / str(name)).is_file()})
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: download all shards")
    return {str(key): folder / str(name) for key, name in names.items()}


def _headers(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Every tensor without its numbers, on the meta device."""
    found: dict[str, Tensor] = {}
    for path in sorted(set(files.values())):
        with _opened(path) as file:
            held = set(file.keys())
            for key in (key for key, home in files.items() if home == path):
                if key not in held:
                    raise ValueError(f"{path} lacks {key}, which the index places there: download it again")
                found[key] = torch.empty(file.get_slice(key).get_shape(), device="meta")
    return found


def _opened(path: Path):
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({first_line(error)}): download it again"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: expected a folder of Lumina-DiMOO, see `swiftmask convert`")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}): download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, got {type(content).__name__}")
    return content


def _released_settings(width: int, depth: int, mlp_width: int) -> dict[str, object]:
    return {
        "d_model": width,
        "n_layers": depth,
        "n_heads": RELEASED.num_heads,
        "mlp_hidden_size": mlp_width,
        "rope_theta": RELEASED.rope_theta,
        "rms_norm_eps": RELEASED.norm_eps,
    }


def _check_settings(settings: Mapping[str, object], found: tuple[int, int, int], source: str) -> None:
    missing = [key for key in _SIZES if key not in settings]
    if missing:
        raise ValueError(f"{source}: config.json lacks {', '.join(missing)}: take the released one")
    told = tuple(settings[key] for key in ("d_model", "n_layers", "mlp_hidden_size"))
    if told != found:
        raise ValueError(f"{source}: config.json says width, layers and MLP {told}, the weights say {found}")
    fixed = {**_FIXED, "n_kv_heads": settings["n_heads"]}
    other = [
        f"{key} {settings[key]!r} instead of {value!r}"
        for key, value in fixed.items()
        if settings.get(key, value) not in (value, None)
    ]
    if other:
        raise ValueError(f"{source} is another architecture than Lumina-DiMOO's: {', '.join(other)}")
