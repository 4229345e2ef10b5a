"""Weights of MAR on disk: the released files, a folder of our own, and strict loading.

Upstream offers `.pth` files with `model` and `model_ema` (sampling wants the second), sometimes beside the
optimizer and the trainer's arguments, and the codec as `kl16.ckpt` under `model`; a mirror has the averaged
weights alone, as `.safetensors`. Sizes are read off the tensors, also those of the head, whose defaults in
upstream's code are not the released ones. What no tensor tells (the number of heads, the patch) is an
argument.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from swiftmask.core.classes import check_class_names
from swiftmask.core.files import (
    count_modules,
    headers,
    load_parts,
    load_strict,
    require_keys,
    state_of,
    weight_files,
    write_folder,
)
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.reading import State, read_tensors
from swiftmask.core.settings import about, check_sizes, read_settings
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


def random_network(name: str, *, seed: int = 0) -> Network:
    """A network of a released size with random float32 weights: enough to measure speed."""
    if name not in RELEASED:
        raise ValueError(f"unknown released size {name!r}: choose one of {', '.join(RELEASED)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(RELEASED[name]).eval()


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
    num_levels = max(1, count_modules(state, r"encoder\.down\.(\d+)\."))
    levels = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(num_levels)]
    ends = [f"{part}.{end}.weight" for part in ("encoder", "decoder") for end in ("conv_in", "conv_out")]
    axes = dict.fromkeys((*ends, *levels, "quant_conv.weight"), 4)
    require_keys(state, axes, source, "the KL autoencoder of MAR")
    z_channels = state["decoder.conv_in.weight"].shape[1]
    if state["encoder.conv_out.weight"].shape[0] != 2 * z_channels:
        raise ValueError(
            f"{source} is not the KL autoencoder of MAR: its encoder gives "
            f"{state['encoder.conv_out.weight'].shape[0]} channels, expected mean and variance of "
            f"{z_channels}: use kl16.ckpt or kl16.safetensors"
        )
    widths = [state[level].shape[0] for level in levels]
    ch, in_channels = state["encoder.conv_in.weight"].shape[:2]

    def attended(part: str) -> tuple[int, ...]:
        levels = [i for i in range(num_levels) if f"{part}.{i}.attn.0.q.weight" in state]
        return tuple(resolution // 2**i for i in levels)

    with about(source):
        return KLConfig(
            ch=ch,
            ch_mult=tuple(width // ch for width in widths),
            num_res_blocks=count_modules(state, r"encoder\.down\.0\.block\.(\d+)\."),
            attn_resolutions=attended("encoder.down"),
            decoder_attn_resolutions=attended("decoder.up"),
            resolution=resolution,
            z_channels=z_channels,
            in_channels=in_channels,
            out_ch=state["decoder.conv_out.weight"].shape[0],
            scale=scale,
        )


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


def write_model(
    folder: str | Path,
    network: Network,
    codec: KLCodec,
    *,
    settings: Mapping[str, object],
    provenance: Mapping[str, object],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the folder that `read_model` reads, each file whole or not at all."""
    sizes = {"network": asdict(network.config), "codec": asdict(codec.config)}
    state = state_of({"network": network, "codec": codec})
    write_folder(
        folder, state, config={"model": "mar", **settings, **sizes}, provenance=provenance, dtype=dtype
    )


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
    path = folder / "config.json"
    settings = read_settings(Settings, path, expected="expected a model folder, see `swiftmask convert`")
    shapes = headers(weight_files(folder))
    for sizes in (settings.network, settings.codec):
        check_sizes(sizes, shapes, source=str(path))
    with torch.device("meta"):
        network, codec = Network(settings.network), KLCodec(settings.codec)
    load_parts(folder / "model.safetensors", {"network": network, "codec": codec})
    return network, codec, settings
