"""Weights of Lumina-DiMOO on disk: the released folder, a folder of our own, and strict loading.

The released folder (Hugging Face `Alpha-VLLM/Lumina-DiMOO`) holds sharded safetensors in bfloat16, a
tokenizer, and the codec under `vqvae/`. Of either folder every key and shape is checked from the headers;
only then is memory taken, and each tensor is read straight into its place in the wanted precision, which may
be host memory for blocks that the device has no room for. The vocabulary is as long as the embedding is,
whatever the config says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from swiftmask.core.files import (
    count_modules,
    fill,
    headers,
    load_strict,
    read_model_settings,
    require_keys,
    weight_files,
)
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.reading import State, read_tensors
from swiftmask.core.settings import read_json, settings_of
from swiftmask.core.vq_codec import VQCodec, VQConfig, build_vq_codec, load_vq_codec
from swiftmask.models.lumina_dimoo.layout import Sampler, Vocabulary, grid_of
from swiftmask.models.lumina_dimoo.memory import CodecNeed, Plan, check_fits
from swiftmask.models.lumina_dimoo.network import Backbone, BackboneConfig
from swiftmask.models.lumina_dimoo.offload import give_memory
from swiftmask.models.lumina_dimoo.prompts import (
    Prompts,
    PromptSettings,
    TokenizerPrompts,
    WordPrompts,
    read_prompts,
)

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
_EXPECTED = "expected a folder of Lumina-DiMOO, see `swiftmask convert`"
_EMBEDDING = "model.transformer.wte.weight"
_BLOCK = r"model\.transformer\.blocks\.(\d+)\."


@dataclass(frozen=True, slots=True)
class Parts:
    """What a folder holds."""

    backbone: Backbone
    codec: VQCodec
    prompts: Prompts
    vocabulary: Vocabulary
    grid: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """In which precision the backbone is kept, and where.

    Attributes:
        blocks_on_device: how many of its blocks are kept on the device; the others wait in host memory and
            visit it at every step. None is all of them.
    """

    dtype: torch.dtype
    device: torch.device
    blocks_on_device: int | None = None


def random_backbone(
    depth: int = RELEASED.depth,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Backbone:
    """A frozen backbone of the released widths with random weights: enough to measure speed."""
    with torch.device("meta"):
        backbone = Backbone(replace(RELEASED, depth=depth)).eval().requires_grad_(False)
    backbone.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for parameter in backbone.parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
    return backbone


def infer_backbone_config(
    state: State, settings: Mapping[str, object] | None = None, *, source: str = "these weights"
) -> BackboneConfig:
    """Sizes from the shapes; what they do not tell from upstream's `config.json`, or as released without it.

    Errors: ValueError for other weights, another architecture, or a config that says something else.
    """
    first_mlp = "model.transformer.blocks.0.ff_proj.weight"
    matrices: dict[str, int] = dict.fromkeys((_EMBEDDING, first_mlp, "model.transformer.ff_out.weight"), 2)
    require_keys(state, matrices, source, "the LLaDA backbone")
    vocabulary_size, width = state[_EMBEDDING].shape
    depth, mlp_width = count_modules(state, _BLOCK), state[first_mlp].shape[0]
    if settings is None:
        settings = _released_settings(width, depth, mlp_width)
    _check_settings(settings, (width, depth, mlp_width), source)
    sizes = {
        "width": width,
        "depth": depth,
        "num_heads": settings["n_heads"],
        "mlp_width": mlp_width,
        "vocabulary_size": vocabulary_size,
        "rope_theta": settings["rope_theta"],
        "norm_eps": settings["rms_norm_eps"],
    }
    return settings_of(BackboneConfig, sizes, source=f"the config.json of {source}")


def read_released(folder: str | Path, *, size: tuple[int, int], placement: Placement) -> Parts:
    """All parts of the released folder, in eval mode. Errors: see `LuminaDiMOO.from_released`."""
    folder = Path(folder)
    settings = read_json(folder / "config.json", expected=_EXPECTED)
    files = weight_files(folder)
    config = infer_backbone_config(headers(files), settings, source=str(folder))
    vocabulary = Vocabulary()
    if settings.get("mask_token_id", vocabulary.mask) != vocabulary.mask:
        raise ValueError(
            f"{folder}: config.json says mask_token_id {settings['mask_token_id']}, "
            f"expected {vocabulary.mask}: this is another LLaDA"
        )
    prompts = TokenizerPrompts.from_folder(folder)
    codec = read_released_codec(folder / "vqvae")
    grid = grid_of(*size, codec.config.downscale)
    backbone = _read_backbone(config, files, "", placement, grid, codec)
    return Parts(backbone, codec.to(placement.device), prompts, vocabulary, grid)


def read_released_codec(folder: str | Path) -> VQCodec:
    """The codec of diffusers' layout, in float32 on the CPU."""
    path, file = Path(folder) / "config.json", Path(folder) / "diffusion_pytorch_model.safetensors"
    config = VQConfig.from_settings(read_json(path, expected=_EXPECTED), source=str(path))
    return load_vq_codec(config, read_tensors(file), source=str(file))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Config of a Lumina-DiMOO model folder. None leaves it to the family.

    Attributes:
        grid: rows and columns of codes of the images.
        dtype: that the model was written from, which may be finer than that on disk.
    """

    model: Literal["lumina_dimoo"]
    grid: tuple[int, int]
    vocabulary: Vocabulary
    prompts: PromptSettings
    backbone: BackboneConfig
    codec: VQConfig
    sampling: SamplingOptions | None = None
    steps: int | None = None
    sampler: Sampler = "exact"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.prompts.words is not None:
            self.vocabulary.check_words(WordPrompts(self.prompts.words).num_ids)


def read_own_settings(folder: Path) -> Settings:
    """`config.json` of a folder of ours."""
    return read_model_settings(Settings, folder, ("backbone", "codec"))


def read_model(folder: str | Path, settings: Settings, placement: Placement) -> Parts:
    """All parts of a folder of ours, in eval mode; the codec in float32."""
    folder = Path(folder)
    files = weight_files(folder)
    prompts = read_prompts(folder, settings.prompts)
    codec = _read_codec(settings.codec, files)
    backbone = _read_backbone(settings.backbone, files, "backbone.", placement, settings.grid, codec)
    return Parts(backbone, codec.to(placement.device), prompts, settings.vocabulary, settings.grid)


def _read_backbone(
    config: BackboneConfig,
    files: Mapping[str, Path],
    prefix: str,
    placement: Placement,
    grid: tuple[int, int],
    codec: VQCodec,
) -> Backbone:
    """Its weights in their places. Errors: ValueError for keys or shapes of another one, or too little memory
    beside the codec.
    """
    with torch.device("meta"):
        backbone = Backbone(config).eval()
    load_strict(backbone, _below(headers(files), prefix), source=_source(files, prefix))
    plan = Plan(
        config=config,
        grid=grid,
        dtype=placement.dtype,
        codec=CodecNeed.of(codec),
        blocks_on_device=placement.blocks_on_device,
    )
    check_fits(plan, placement.device)
    transformer, num_resident = (
        backbone.to(placement.dtype).model.transformer,
        config.depth - plan.num_waiting,
    )
    others = (transformer.wte, transformer.ln_f, transformer.ff_out)
    give_memory(others, backbone.blocks, placement.device, num_resident)
    fill(backbone, files, prefix=prefix)
    return backbone


def _read_codec(config: VQConfig, files: Mapping[str, Path]) -> VQCodec:
    with torch.device("meta"):
        codec = build_vq_codec(config)
    load_strict(codec, _below(headers(files), "codec."), source=_source(files, "codec."))
    fill(codec.float().to_empty(device="cpu"), files, prefix="codec.")
    return codec


def _below(found: State, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}


def _source(files: Mapping[str, Path], prefix: str) -> str:
    """What a complaint about some tensors names."""
    folder = next(iter(files.values())).parent if files else Path()
    return f"{folder} ({prefix}*)" if prefix else str(folder)


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
