"""A tokenizer on disk: a folder of its own, or the one inside a model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from swiftmask.api import load
from swiftmask.core.files import headers, load_parts, state_of, weight_files, write_folder
from swiftmask.core.ranges import check_fields
from swiftmask.core.settings import check_sizes, read_settings
from swiftmask.core.trainable import TokenizerKind
from swiftmask.core.vq_codec import VQCodec, VQConfig, build_vq_codec
from swiftmask.models.mar.codec import KLCodec, KLConfig
from swiftmask.models.maskgit.codec import VQGAN
from swiftmask.registry import bundled_folder, bundled_names, read_config

Codec = VQCodec | KLCodec | VQGAN


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSettings:
    """`config.json` of a tokenizer's folder."""

    tokenizer: Literal["vq", "kl"]
    resolution: int
    codec: VQConfig | KLConfig

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.codec, VQConfig) != (self.tokenizer == "vq"):
            raise ValueError(f"the sizes of codec are not those of a {self.tokenizer!r} tokenizer")


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A codec, frozen on the CPU, and the side in pixels of the images that it was trained on."""

    codec: Codec
    resolution: int

    @property
    def kind(self) -> TokenizerKind:
        """ "vqgan" is MaskGIT's released codec, which only MaskGIT reads."""
        if isinstance(self.codec, KLCodec):
            return "kl"
        return "vq" if isinstance(self.codec, VQCodec) else "vqgan"

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.resolution // self.codec.config.downscale

    @torch.no_grad()
    def rows(self, images_B3HW: Tensor) -> Tensor:
        """What the cache keeps of images in [0, 1]: codes [B, H, W], or moments [B, 2C, H, W] in float16."""
        if isinstance(self.codec, KLCodec):
            return self.codec.moments(self.codec.to_pixels_in(images_B3HW)).half()
        kind = torch.int16 if len(self.codec.codebook_VC) < 2**15 else torch.int32
        return self.codec.encode(images_B3HW).to(kind)


def write_tokenizer(
    folder: Path, codec: VQCodec | KLCodec, *, resolution: int, provenance: Mapping[str, object]
) -> None:
    """Write the folder that `read_tokenizer` reads, in float16, each file whole or not at all."""
    kind = "vq" if isinstance(codec, VQCodec) else "kl"
    config = {"tokenizer": kind, "resolution": resolution, "codec": asdict(codec.config)}
    state = state_of({"codec": codec.vq if isinstance(codec, VQCodec) else codec})
    write_folder(folder, state, config=config, provenance=provenance, dtype=torch.float16)


def read_tokenizer(source: str | Path) -> Tokenizer:
    """From a tokenizer's folder, the codec of a model's folder, or bundled weights by name.

    Errors: FileNotFoundError; ValueError for a damaged folder, or one that holds something else.
    """
    bundled = str(source) in bundled_names()
    folder = bundled_folder(str(source)) if bundled else Path(source).expanduser()
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no tokenizer in {folder}: train one (swiftmask train tokenizer data=FOLDER) and give its "
            "folder, as in tokenizer=runs/tokenizer/model"
        )
    config = read_config(folder)
    if "model" in config:
        return tokenizer_of(load(folder, device="cpu").model)
    if "tokenizer" not in config:
        raise ValueError(f"{folder} holds no tokenizer: expected the folder that `train tokenizer` wrote")
    settings = read_settings(TokenizerSettings, path, expected="expected the folder of a tokenizer")
    check_sizes(settings.codec, headers(weight_files(folder)), source=str(path))
    with torch.device("meta"):
        codec = (
            build_vq_codec(settings.codec)
            if isinstance(settings.codec, VQConfig)
            else KLCodec(settings.codec)
        )
    network = codec.vq if isinstance(codec, VQCodec) else codec
    load_parts(folder / "model.safetensors", {"codec": network})
    return Tokenizer(codec.eval().requires_grad_(False), settings.resolution)


def tokenizer_of(model: Any) -> Tokenizer:
    """The codec of a base model."""
    codec = model.codec
    if isinstance(codec, KLCodec):  # a token of the model may hold several latents
        return Tokenizer(codec.eval().requires_grad_(False), codec.config.resolution)
    side = cast(tuple[int, int], model.spec.grid)[0] * codec.config.downscale
    return Tokenizer(codec.eval().requires_grad_(False), side)
