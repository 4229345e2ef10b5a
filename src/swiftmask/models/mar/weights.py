"""Weights of MAR on disk: the released files, a folder of our own, and strict loading.

Upstream offers `.pth` files with `model` and `model_ema` (sampling wants the second), sometimes beside the
optimizer and the trainer's arguments, and the codec as `kl16.ckpt` under `model`; a mirror has the averaged
weights alone, as `.safetensors`. Sizes are read off the tensors, also those of the head, whose defaults in
upstream's code are not the released ones. What no tensor tells (the number of heads, the patch) is an
argument.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from swiftmask.core.classes import check_class_names
from swiftmask.core.convolutions import attended_in, sizes_in
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
from swiftmask.models.mar.codec import RELEASED_SCALE, KLCodec, KLConfig
from swiftmask.models.mar.network import GuidanceSchedule, Network, NetworkConfig


def _released(width: int, depth: int, num_heads: int, head_width: int, head_depth: int) -> NetworkConfig:
    return NetworkConfig(
        encoder_width=width,
        encoder_depth=depth,
        encoder_heads=num_heads,
        decoder_width=width,
        decoder_depth=depth,
        decoder_heads=num_heads,
        channels=16,
        grid=16,
        num_classes=1000,
        head_width=head_width,
        head_depth=head_depth,
    )


RELEASED = {
    "mar-b": _released(768, 12, 12, 1024, 6),
    "mar-l": _released(1024, 16, 16, 1280, 8),
    "mar-h": _released(1280, 20, 16, 1536, 12),
}
RELEASED_KL = KLConfig(
    ch=128,
    ch_mult=(1, 1, 2, 2, 4),
    num_res_blocks=2,
    attn_resolutions=(16,),
    resolution=256,
    z_channels=16,
)
_HEADS = {config.encoder_width: config.encoder_heads for config in RELEASED.values()}
_KL_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


random_mar = partial(random_network, Network, RELEASED)


def infer_network_config(
    state: State, *, num_heads: int | None = None, patch_size: int = 1, source: str = "these weights"
) -> NetworkConfig:
    """Sizes from the shapes. The released widths tell their number of heads; others need it given."""
    positions = ("encoder_pos_embed_learned", "diffusion_pos_embed_learned", "mask_token")
    matrices = ("fake_latent", "class_emb.weight", "z_proj.weight", "encoder_blocks.0.mlp.fc1.weight")
    axes: dict[str, int] = dict.fromkeys((*matrices, "diffloss.net.input_proj.weight"), 2)
    axes |= dict.fromkeys(positions, 3)
    require_keys(state, axes, source, "MAR")
    width, channels = state["z_proj.weight"].shape
    heads = _HEADS.get(width) if num_heads is None else num_heads
    if heads is None:
        raise ValueError(f"{source}: no released MAR has width {width}: pass its num_heads")
    num_tokens = state["diffusion_pos_embed_learned"].shape[1]
    grid = round(num_tokens**0.5)
    if grid**2 != num_tokens:
        raise ValueError(f"{source}: {num_tokens} positions, expected those of a square grid")
    with about(source):
        return NetworkConfig(
            encoder_width=width,
            encoder_depth=count_modules(state, r"encoder_blocks\.(\d+)\."),
            encoder_heads=heads,
            decoder_width=state["mask_token"].shape[-1],
            decoder_depth=count_modules(state, r"decoder_blocks\.(\d+)\."),
            decoder_heads=heads,
            channels=channels,
            grid=grid,
            num_classes=state["class_emb.weight"].shape[0],
            head_width=state["diffloss.net.input_proj.weight"].shape[0],
            head_depth=count_modules(state, r"diffloss\.net\.res_blocks\.(\d+)\."),
            buffer_size=state["encoder_pos_embed_learned"].shape[1] - num_tokens,
            mlp_ratio=state["encoder_blocks.0.mlp.fc1.weight"].shape[0] / width,
            patch_size=patch_size,
        )


def infer_kl_config(
    state: State,
    *,
    resolution: int = 256,
    scale: float = RELEASED_SCALE,
    source: str = "these weights",
) -> KLConfig:
    """Sizes from the shapes; `resolution` is nominal and only names the levels that have attention.

    Errors: ValueError naming what is missing, also for a VQGAN, which has the same blocks.
    """
    what, axes = "the KL autoencoder of MAR", {"encoder.conv_out.weight": 4, "quant_conv.weight": 4}
    sizes = sizes_in(state, axes, resolution=resolution, source=source, what=what)
    z_channels, given = sizes["z_channels"], state["encoder.conv_out.weight"].shape[0]
    if given != 2 * z_channels:
        raise ValueError(
            f"{source} is not {what}: its encoder gives {given} channels, expected mean and variance of "
            f"{z_channels}: use kl16.ckpt or kl16.safetensors"
        )
    attended = attended_in(state, "decoder.up", resolution)
    with about(source):
        return KLConfig(**sizes, decoder_attn_resolutions=attended, scale=scale)


def read_released(
    network_path: str | Path, codec_path: str | Path, *, num_heads: int | None = None
) -> tuple[Network, KLCodec]:
    """Both networks from the two released files, every key and shape checked."""
    state, source = read_tensors(network_path), str(network_path)
    config = infer_network_config(state, num_heads=num_heads, source=source)
    with torch.device("meta"):
        network = Network(config)
    load_strict(network, state, source=source)
    return network.eval(), read_released_codec(codec_path, grid=config.grid)


def read_released_codec(path: str | Path, *, grid: int = 16) -> KLCodec:
    """The codec from its released file, whose training leftovers (`loss.*`) are dropped."""
    state = {key: value for key, value in read_tensors(path).items() if key.startswith(_KL_PARTS)}
    num_levels = count_modules(state, r"encoder\.down\.(\d+)\.")
    config = infer_kl_config(state, resolution=grid * 2 ** max(0, num_levels - 1), source=str(path))
    with torch.device("meta"):
        codec = KLCodec(config)
    load_strict(codec, state, source=str(path))
    return codec.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Config of a MAR model folder. None leaves it to the family."""

    model: Literal["mar"]
    network: NetworkConfig
    codec: KLConfig
    sampling: SamplingOptions | None = None
    steps: int | None = None
    guidance_schedule: GuidanceSchedule = "linear"
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        check_class_names(self.class_names, self.network.num_classes)


def read_model(folder: str | Path) -> tuple[Network, KLCodec, Settings]:
    """Both networks (float32, on the CPU, in eval mode) and the folder's settings."""
    folder = Path(folder)
    settings = read_model_settings(Settings, folder, ("network", "codec"))
    with torch.device("meta"):
        network, codec = Network(settings.network), KLCodec(settings.codec)
    load_parts(folder / "model.safetensors", {"network": network, "codec": codec})
    if attributes := settings.network.class_attributes:
        check_attribute_rows(network.get_buffer("class_rows"), attributes, source=str(folder))
    return network, codec, settings
