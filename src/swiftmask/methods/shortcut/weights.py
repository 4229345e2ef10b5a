"""Weights of a shortcut on disk: the released pickle, a folder of our own, and strict loading.

The released file (Hugging Face `Kaiwen-Zhu/MIGM-Shortcut`, `MaskGIT-Shortcut/maskgit-shortcut.pth`) is a
plain state dict. Sizes are read off the tensors; what no tensor tells (the number of heads) is an argument.
Pickles are only read with `weights_only=True`. Our folder also describes the base model the shortcut was
trained for: features and token embeddings come from there, and no tensor would show that they are
another's.
"""

import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from swiftmask.core.protocol import Spec
from swiftmask.methods.shortcut.network import Shortcut, ShortcutConfig

State = Mapping[str, Tensor]

RELEASED_SHORTCUT = ShortcutConfig(width=768, bottleneck_width=384, num_blocks=1, num_heads=16)
"""Sizes of the released MaskGIT shortcut."""


def read_shortcut(path: str | Path, *, num_heads: int = 16, base: Spec | None = None) -> Shortcut:
    """A shortcut from our folder, a released `.pth` or a `.safetensors`: float32, on the CPU, in eval mode.

    Args:
        num_heads: for a bare file, which does not tell; a folder does.
        base: the model it is meant for; a shortcut of another one is refused.

    Errors: FileNotFoundError; ValueError for a damaged file, another architecture or another base model.
    """
    path = Path(path)
    if path.is_dir():
        config, made_for = _read_config(path / "config.json")
        source = path / "model.safetensors"
        state = read_state(source)
    else:
        source, made_for, state = path, {}, read_state(path)
        config = infer_shortcut_config(state, num_heads=num_heads, source=str(path))
    if base is not None:
        _check_base(path, {"width": config.width} | made_for, base)
    with torch.device("meta"):
        shortcut = Shortcut(config).eval()
    _load_strict(shortcut, {key: value.float() for key, value in state.items()}, source=str(source))
    return shortcut


def write_shortcut(
    folder: str | Path,
    shortcut: Shortcut,
    *,
    base: Spec,
    provenance: Mapping[str, object],
    base_name: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `config.json`, `model.safetensors` and `provenance.json`, each whole or not at all.

    Args:
        base: the model it was trained for, and `base_name` what to call it ("maskgit-scenes").
        dtype: of the weights on disk (they are read as float32).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = {"name": base_name or base.name, **_identity(base)}
    config = {"method": "shortcut", "shortcut": asdict(shortcut.config), "base_model": model}
    tensors = shortcut.state_dict()
    state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in tensors.items()}
    partial = folder / "model.safetensors.partial"
    try:
        save_file(state, partial)
        os.replace(partial, folder / "model.safetensors")
    finally:
        partial.unlink(missing_ok=True)
    for name, content in (("provenance.json", dict(provenance)), ("config.json", config)):
        (folder / f"{name}.partial").write_text(json.dumps(content, indent=2) + "\n")
        os.replace(folder / f"{name}.partial", folder / name)


def infer_shortcut_config(
    state: State, *, num_heads: int = 16, source: str = "these weights"
) -> ShortcutConfig:
    """Sizes from the shapes, which do not tell the number of heads.

    Errors: ValueError if these are not the weights of a MaskGIT shortcut.
    """
    norm, first_mlp = "blocks.0.cross_attn.norm.weight", "blocks.0.cross_attn_ff.fn.net.0.weight"
    if "ln_f.weight" in state and norm not in state:
        raise ValueError(f"{source} is a Lumina-DiMOO shortcut, another architecture: expected a MaskGIT one")
    missing = [key for key in (norm, first_mlp, "last_layer.1.weight") if key not in state]
    if missing:
        raise ValueError(f"{source} is no shortcut: it lacks {_some(missing)} and has {_some(list(state))}")
    bottleneck_width = state[norm].shape[0]
    projected, timed = "proj_in.weight" in state, "time_embedder.mlp.0.weight" in state
    return ShortcutConfig(
        width=state["proj_in.weight"].shape[1] if projected else bottleneck_width,
        bottleneck_width=bottleneck_width,
        num_blocks=1 + max(int(match[1]) for key in state if (match := re.match(r"blocks\.(\d+)\.", key))),
        num_heads=num_heads,
        mlp_width=state[first_mlp].shape[0],
        time_frequencies=state["time_embedder.mlp.0.weight"].shape[1] if timed else None,
    )


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` state dict or a `.safetensors` file.

    Errors: FileNotFoundError; ValueError if it is truncated, holds other things, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no such shortcut: {path} (expected a folder with config.json, a .pth or a .safetensors file)"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower():
            raise ValueError(f"{path} is truncated or no PyTorch file: download it again") from error
        raise ValueError(
            f"{path} holds Python objects that could run code and is refused (weights_only=True): "
            "save its state dict alone, where you trust it, and load that"
        ) from error
    except (SafetensorError, EOFError, RuntimeError, OSError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path} is truncated or no weights file ({_line(error)}): download it again"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is no shortcut: expected a plain state dict, a dict of tensors")
    return dict(state)


def _load_strict(shortcut: Shortcut, state: State, *, source: str) -> None:
    own = shortcut.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    wrong = [
        f"{key} (expected {tuple(own[key].shape)}, got {tuple(state[key].shape)})"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
    complaints = [f"{len(names)} {what}: {_some(names)}" for what, names in found if names]
    if complaints:
        raise ValueError(f"{source} does not fit Shortcut: {'; '.join(complaints)}")
    shortcut.load_state_dict(state, assign=True)


def _read_config(path: Path) -> tuple[ShortcutConfig, dict[str, object]]:
    """Sizes, and what the base model must be."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: expected a shortcut folder, a .pth or a .safetensors file")
    try:
        content = json.loads(path.read_text())
        if content["method"] != "shortcut":
            raise ValueError(f"it says method {content['method']!r}")
        made_for = content["base_model"]
        base = {key: made_for[key] for key in ("family", "width", "grid", "codebook_size", "name")}
        return ShortcutConfig(**content["shortcut"]), base
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no config of a shortcut ({_line(error)})") from error


def _identity(base: Spec) -> dict[str, object]:
    return {
        "family": base.name,
        "width": base.width,
        "grid": list(base.grid),
        "codebook_size": base.codebook_size,
    }


def _check_base(path: Path, made_for: Mapping[str, object], base: Spec) -> None:
    """A name is no identity (a tuned copy of the base may use its shortcut); sizes are."""
    differ = [
        f"{key} {made_for[key]} against {value}"
        for key, value in _identity(base).items()
        if key in made_for and made_for[key] != value
    ]
    if differ:
        whose = made_for.get("name", "another base model")
        raise ValueError(
            f"the shortcut {path} was made for {whose} and does not fit this model: {', '.join(differ)}"
        )


def _some(names: list[str], limit: int = 4) -> str:
    rest = len(names) - limit
    return ", ".join(str(name) for name in names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
