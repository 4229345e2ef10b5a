"""Weights of a shortcut on disk: the released pickle, a folder of our own, and strict loading.

The released files (Hugging Face `Kaiwen-Zhu/MIGM-Shortcut`, `MaskGIT-Shortcut/maskgit-shortcut.pth` and
`DiMOO-Shortcut/dimoo-shortcut.pth`) are plain state dicts. Which network it is and its sizes are read off the
tensors; what no tensor tells (the number of heads) is an argument.
Pickles are only read with `weights_only=True`. Our folder also describes the base model the shortcut was
trained for: features and token embeddings come from there, and no tensor would show that they are
another's.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from swiftmask.core.files import count_modules, load_strict, require_keys, write_folder
from swiftmask.core.protocol import BaseModel, Spec
from swiftmask.core.ranges import check_fields
from swiftmask.core.reading import State, read_tensors
from swiftmask.core.settings import about, check_sizes, read_settings
from swiftmask.methods.shortcut.features import AnyShortcut
from swiftmask.methods.shortcut.network import Shortcut, ShortcutConfig
from swiftmask.methods.shortcut.rotary import RotaryShortcut, RotaryShortcutConfig

RELEASED_SHORTCUT = ShortcutConfig(width=768, bottleneck_width=384, num_blocks=1, num_heads=16)
"""Sizes of the released MaskGIT shortcut."""

RELEASED_ROTARY_SHORTCUT = RotaryShortcutConfig(
    width=4096, bottleneck_width=2048, num_heads=32, mlp_width=12288
)
"""Sizes of the released Lumina-DiMOO shortcut."""

AnyConfig = ShortcutConfig | RotaryShortcutConfig
_EXPECTED = "expected a shortcut folder, a .pth or a .safetensors file"
_ROTARY_KEY = "blocks.0.cross_attn.q_proj.weight"


def read_shortcut(path: str | Path, *, num_heads: int | None = None, base: Spec | None = None) -> AnyShortcut:
    """A shortcut from our folder, a released `.pth` or a `.safetensors`: float32, on the CPU, frozen and
    in eval mode.

    Args:
        num_heads: for a bare file, which does not tell (default: the released one's); a folder does.
        base: the model it is meant for; a shortcut of another one is refused.

    Errors: FileNotFoundError; ValueError for a damaged file, another architecture or another base model.
    """
    path = Path(path)
    made_for = None
    if path.is_dir():
        settings = read_settings(Settings, path / "config.json", expected=_EXPECTED)
        config, made_for, source = settings.shortcut, settings.base_model, path / "model.safetensors"
        state = read_tensors(source)
        check_sizes(config, state, source=str(path / "config.json"))
    else:
        source, state = path, read_tensors(path)
        config = infer_config(state, num_heads=num_heads, source=str(path))
    if base is not None:
        _check_base(path, config, made_for, base)
    with torch.device("meta"):
        shortcut = build(config).eval()
    load_strict(shortcut, state, source=str(source))
    return shortcut


def write_shortcut(
    folder: str | Path,
    shortcut: AnyShortcut,
    *,
    base: Spec,
    provenance: Mapping[str, object],
    base_name: str | None = None,
    full_steps: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `config.json`, `model.safetensors` and `provenance.json`, each whole or not at all.

    Args:
        base: the model it was trained for, and `base_name` what to call it ("maskgit-scenes").
        full_steps: the budget `accelerate` takes when none is asked for.
        dtype: of the weights on disk (they are read as float32).
    """
    settings = Settings(
        method="shortcut",
        shortcut=shortcut.config,
        base_model=BaseModel.of(base, base_name),
        full_steps=full_steps,
    )
    write_folder(folder, shortcut.state_dict(), config=asdict(settings), provenance=provenance, dtype=dtype)


def build(config: AnyConfig) -> AnyShortcut:
    """The network of these sizes, with fresh weights."""
    return RotaryShortcut(config) if isinstance(config, RotaryShortcutConfig) else Shortcut(config)


def infer_config(state: State, *, num_heads: int | None = None, source: str = "these weights") -> AnyConfig:
    """Which network it is, and its sizes, from the tensors. Errors: ValueError if it is no shortcut."""
    if _ROTARY_KEY in state:
        heads = RELEASED_ROTARY_SHORTCUT.num_heads if num_heads is None else num_heads
        return infer_rotary_config(state, num_heads=heads, source=source)
    heads = RELEASED_SHORTCUT.num_heads if num_heads is None else num_heads
    return infer_shortcut_config(state, num_heads=heads, source=source)


def infer_rotary_config(
    state: State, *, num_heads: int = 32, source: str = "these weights"
) -> RotaryShortcutConfig:
    """Sizes from the shapes, which do not tell the number of heads.

    Errors: ValueError if these are not the weights of a Lumina-DiMOO shortcut.
    """
    needed = ("proj_in.weight", "time_embedder.mlp.0.weight", "blocks.0.cross_attn.ff_proj.weight")
    require_keys(state, dict.fromkeys((*needed, _ROTARY_KEY), 2), source, "a Lumina-DiMOO shortcut")
    bottleneck_width, width = state["proj_in.weight"].shape
    with about(source):
        return RotaryShortcutConfig(
            width=width,
            bottleneck_width=bottleneck_width,
            num_heads=num_heads,
            mlp_width=state["blocks.0.cross_attn.ff_proj.weight"].shape[0],
            num_blocks=count_modules(state, r"blocks\.(\d+)\."),
            time_frequencies=state["time_embedder.mlp.0.weight"].shape[1],
        )


def infer_shortcut_config(
    state: State, *, num_heads: int = 16, source: str = "these weights"
) -> ShortcutConfig:
    """Sizes from the shapes, which do not tell the number of heads.

    Errors: ValueError if these are not the weights of a MaskGIT shortcut.
    """
    norm, first_mlp = "blocks.0.cross_attn.norm.weight", "blocks.0.cross_attn_ff.fn.net.0.weight"
    if "ln_f.weight" in state and norm not in state:
        raise ValueError(f"{source} is a Lumina-DiMOO shortcut, another architecture: expected a MaskGIT one")
    optional = [key for key in ("proj_in.weight", "time_embedder.mlp.0.weight") if key in state]
    axes = {norm: 1, **dict.fromkeys((first_mlp, "last_layer.1.weight", *optional), 2)}
    require_keys(state, axes, source, "a MaskGIT shortcut")
    bottleneck_width = state[norm].shape[0]
    projected, timed = "proj_in.weight" in state, "time_embedder.mlp.0.weight" in state
    with about(source):
        return ShortcutConfig(
            width=state["proj_in.weight"].shape[1] if projected else bottleneck_width,
            bottleneck_width=bottleneck_width,
            num_blocks=count_modules(state, r"blocks\.(\d+)\."),
            num_heads=num_heads,
            mlp_width=state[first_mlp].shape[0],
            time_frequencies=state["time_embedder.mlp.0.weight"].shape[1] if timed else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Config of a shortcut. `full_steps` is the budget `accelerate` takes when none is asked for."""

    method: Literal["shortcut"]
    shortcut: ShortcutConfig | RotaryShortcutConfig
    base_model: BaseModel
    full_steps: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def _check_base(path: Path, config: AnyConfig, made_for: BaseModel | None, base: Spec) -> None:
    """Errors: ValueError for another base model; of a bare file, its width must say so."""
    differ = [] if made_for is None else made_for.differences(base)
    if config.width != base.width and not differ:
        differ = [f"width {config.width} against {base.width}"]
    if differ:
        whose = "another base model" if made_for is None else made_for.name
        raise ValueError(
            f"the shortcut {path} was made for {whose} and does not fit this model: {', '.join(differ)}"
        )
