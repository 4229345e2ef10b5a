"""Weights of MaskGIT on disk: the released pickles, a folder of our own, and strict loading.

The released files (Hugging Face `llvictorll/Maskgit-pytorch`) are `MaskGIT_ImageNet_{256,512}.pth`, with the
weights under `model_state_dict`, and the Lightning file `VQGAN/last.ckpt`, with them under `state_dict`
beside `loss.*`. Sizes are read off the tensors; what no tensor tells (the number of heads, where codes end
and classes begin, the nominal resolution) is an argument. Pickles are only read with `weights_only=True`.
"""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from swiftmask.core.classes import check_class_names
from swiftmask.core.convolutions import sizes_in
from swiftmask.core.embeddings import check_attribute_rows
from swiftmask.core.files import (
    count_modules,
    load_parts,
    load_strict,
    random_network,
    read_model_settings,
    require_keys,
)
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.reading import State, read_tensors
from swiftmask.core.settings import about
from swiftmask.core.vq_codec import VQCodec, VQConfig, build_vq_codec
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.network import Transformer, TransformerConfig


def _released_transformer(grid: int) -> TransformerConfig:
    return TransformerConfig(
        width=768, depth=24, num_heads=16, mlp_width=3072, codebook_size=1024, num_classes=1000, grid=grid
    )


RELEASED = {"maskgit-256": _released_transformer(16), "maskgit-512": _released_transformer(32)}
RELEASED_VQGAN = VQGANConfig(
    ch=128,
    ch_mult=(1, 1, 2, 2, 4),
    num_res_blocks=2,
    attn_resolutions=(16,),
    resolution=256,
    z_channels=256,
    n_embed=1024,
    embed_dim=256,
)


random_transformer = partial(random_network, Transformer, RELEASED)


def read_upstream(path: str | Path) -> dict[str, Tensor]:
    """The weights in a released `.pth`, a Lightning `.ckpt` (its `loss.*` dropped) or a `.safetensors`."""
    return {key: value for key, value in read_tensors(path).items() if not key.startswith("loss.")}


def infer_transformer_config(
    state: State, *, num_heads: int = 16, codebook_size: int = 1024, source: str = "these weights"
) -> TransformerConfig:
    """Sizes from the shapes, which tell neither the heads nor where in the vocabulary the codes end."""
    _refuse_other_family(state, source)
    first_mlp = "transformer.layers.0.1.fn.net.0.weight"
    axes = {"pos_emb": 3, "tok_emb.weight": 2, "bias": 2, first_mlp: 2}
    require_keys(state, axes, source, "the MaskGIT v1.0 transformer")
    length, width = state["pos_emb"].shape[-2:]
    vocabulary_size = state["tok_emb.weight"].shape[0]
    grid = round((length - 1) ** 0.5)
    num_classes = vocabulary_size - codebook_size - 2
    if grid**2 + 1 != length:
        raise ValueError(f"{source}: pos_emb has {length} positions, expected a square grid and one class")
    if num_classes < 1:
        raise ValueError(
            f"{source}: a vocabulary of {vocabulary_size} has no room for classes after {codebook_size} "
            "codes and the mask: pass its codebook_size"
        )
    with about(source):
        return TransformerConfig(
            width=width,
            depth=count_modules(state, r"transformer\.layers\.(\d+)\."),
            num_heads=num_heads,
            mlp_width=state[first_mlp].shape[0],
            codebook_size=codebook_size,
            num_classes=num_classes,
            grid=grid,
        )


def infer_vqgan_config(state: State, *, resolution: int = 256, source: str = "these weights") -> VQGANConfig:
    """Sizes from the shapes; `resolution` is nominal and only names the levels that have attention."""
    _refuse_other_family(state, source)
    axes = {"quantize.embedding.weight": 2}
    sizes = sizes_in(state, axes, resolution=resolution, source=source, what="the taming VQGAN")
    n_embed, embed_dim = state["quantize.embedding.weight"].shape
    with about(source):
        return VQGANConfig(**sizes, n_embed=n_embed, embed_dim=embed_dim)


def read_released(
    transformer_path: str | Path,
    vqgan_path: str | Path,
    *,
    num_heads: int = 16,
    codebook_size: int = 1024,
    resolution: int = 256,
) -> tuple[Transformer, VQGAN]:
    """Both networks from the two released files, every key and shape checked."""
    state, source = read_upstream(transformer_path), str(transformer_path)
    config = infer_transformer_config(state, num_heads=num_heads, codebook_size=codebook_size, source=source)
    codec_state, codec_source = read_upstream(vqgan_path), str(vqgan_path)
    codec_config = infer_vqgan_config(codec_state, resolution=resolution, source=codec_source)
    with torch.device("meta"):
        transformer, codec = Transformer(config), VQGAN(codec_config)
    load_strict(transformer, state, source=source)
    load_strict(codec, codec_state, source=codec_source)
    return transformer.eval(), codec.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Config of a MaskGIT model folder. None leaves it to the family."""

    model: Literal["maskgit"]
    transformer: TransformerConfig
    codec: VQGANConfig | VQConfig
    sampling: SamplingOptions | None = None
    steps: int | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        check_class_names(self.class_names, self.transformer.num_classes)


def read_model(folder: str | Path) -> tuple[Transformer, VQGAN | VQCodec, Settings]:
    """Both networks (float32, on the CPU, in eval mode) and the folder's settings."""
    folder = Path(folder)
    settings = read_model_settings(Settings, folder, ("transformer", "codec"))
    with torch.device("meta"):
        transformer, sizes = Transformer(settings.transformer), settings.codec
        codec = VQGAN(sizes) if isinstance(sizes, VQGANConfig) else build_vq_codec(sizes)
    load_parts(folder / "model.safetensors", {"transformer": transformer, "codec": network_of(codec)})
    if attributes := settings.transformer.class_attributes:
        check_attribute_rows(transformer.get_buffer("class_rows"), attributes, source=str(folder))
    return transformer, codec.eval(), settings


def network_of(codec: VQGAN | VQCodec) -> nn.Module:
    """What is written of a codec: diffusers' network where it is one."""
    return codec.vq if isinstance(codec, VQCodec) else codec


def is_newer_family(state: State) -> bool:
    """Whether a transformer is of valeoai's newer family, which has other layers."""
    adaptive = any(re.fullmatch(r"transformer\.layers\.\d+\.mlp\.1\.weight", key) for key in state)
    return adaptive or any(key.startswith(("cls_emb", "reg_tokens")) for key in state)


def _refuse_other_family(state: State, source: str) -> None:
    if is_newer_family(state):
        raise ValueError(
            f"{source} is of valeoai's newer family (Halton-MaskGIT, adaLN, 16384 codes), another "
            "architecture: expected the v1.0 files, MaskGIT_ImageNet_256.pth or _512.pth"
        )
