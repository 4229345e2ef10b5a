"""Weights and settings on disk: read with clear errors, loaded strictly, written whole or not at all.

Shared by models and methods, which may not import each other; the one place of the core that needs
safetensors. Pickles are only ever read with `weights_only=True`. Large models are several files with an
index, in the layout of the Hugging Face hub; `weight_files`, `headers` and `fill` read them with no more than
one tensor in memory beside the model.
"""

import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

State = Mapping[str, Tensor]

_WRAPPERS = ("model_state_dict", "state_dict")
"""Keys under which training scripts keep the weights, beside optimizer state and counters."""

SHARD_BYTES = 5 * 10**9
"""Weights larger than this on disk are split, as the hub does."""

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_tensors(path: str | Path, *, wrappers: Sequence[str] = _WRAPPERS) -> dict[str, Tensor]:
    """The weights in a `.safetensors`, a `.pth` or a Lightning `.ckpt` file.

    Args:
        wrappers: keys under which the file may keep the weights, the wanted ones first.

    Errors: FileNotFoundError; ValueError if truncated, not a checkpoint, or only readable by running its
    pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such weights file: {path} (expected a .pth, .ckpt or .safetensors file)")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for key in wrappers:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no weights: expected a dict of tensors, got {type(content).__name__}")
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise ValueError(
            f"{path} is no checkpoint of a model: expected tensors (or them under {' or '.join(wrappers)}), "
            f"got other things under {some(strange)}"
        )
    return dict(content)


def load_strict(module: nn.Module, state: State, *, source: str) -> None:
    """Copy `state` into `module` (or, if it is on the meta device, adopt its tensors).

    Errors: ValueError naming the first missing and unexpected keys and wrong shapes, with how many there are.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    wrong = [
        f"{key} (expected {tuple(own[key].shape)}, got {tuple(state[key].shape)})"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
    complaints = [f"{len(names)} {what}: {some(names)}" for what, names in found if names]
    if complaints:
        raise ValueError(f"{source} does not fit {type(module).__name__}: {'; '.join(complaints)}")
    module.load_state_dict(state, assign=any(value.is_meta for value in own.values()))


def write_folder(
    folder: str | Path,
    state: State,
    *,
    config: Mapping[str, object],
    provenance: Mapping[str, object],
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the weights (as `dtype`), `provenance.json` and `config.json`, each file whole or not at all.

    `config.json` comes last: a folder that has one is complete. Weights are `model.safetensors`; if they are
    more than `shard_bytes`, several files with an index, one of which at a time is in memory as `dtype`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(state, dtype, shard_bytes)
    names = [_SINGLE]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        (folder / "config.json").unlink(missing_ok=True)  # half of the old files, half of the new: incomplete
    for name, keys in zip(names, shards, strict=True):
        _write_tensors(folder / name, {key: state[key].to(dtype).contiguous() for key in keys})
    if len(shards) > 1:
        homes = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        _write_json(folder / _INDEX, {"weight_map": homes})
    _remove_old_weights(folder, {*names, *([_INDEX] if len(shards) > 1 else [])})
    _write_json(folder / "provenance.json", provenance)
    _write_json(folder / "config.json", config)


def weight_files(folder: Path) -> dict[str, Path]:
    """Which file of a model folder holds each tensor: `model.safetensors` all of them, or by the index.

    Errors: FileNotFoundError naming what is missing; ValueError for a damaged file.
    """
    single, index = folder / _SINGLE, folder / _INDEX
    if single.is_file():
        with _opened(single) as file:
            return dict.fromkeys(file.keys(), single)
    if not index.is_file():
        raise FileNotFoundError(f"no weights in {folder}: expected {_SINGLE}, or {_INDEX} with its shards")
    names = _weight_map(index)
    missing = sorted({name for name in names.values() if not (folder / name).is_file()})
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: download all shards")
    return {key: folder / name for key, name in names.items()}


def headers(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Every tensor without its numbers, on the meta device. Errors: ValueError for a damaged file."""
    found: dict[str, Tensor] = {}
    for path in sorted(set(files.values())):
        with _opened(path) as file:
            held = set(file.keys())
            for key in (key for key, home in files.items() if home == path):
                if key not in held:
                    raise ValueError(f"{path} lacks {key}, which the index places there: download it again")
                found[key] = torch.empty(file.get_slice(key).get_shape(), device="meta")
    return found


def fill(module: nn.Module, files: Mapping[str, Path], *, prefix: str = "") -> None:
    """Read every tensor of `module` (`prefix` before its key on disk) into its place, in the precision and on
    the device it has there. What keys and shapes there are, `headers` and `load_strict` check before.

    A file is opened for each tensor: what was read stays mapped, and counted, until it is closed.
    """
    with torch.no_grad():
        for key, place in module.state_dict().items():
            with _opened(files[prefix + key]) as file:
                place.copy_(file.get_tensor(prefix + key))


def state_of(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weights of several networks as one state, each key after its part's name."""
    return {
        f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
    }


def load_parts(path: Path, parts: Mapping[str, nn.Module]) -> None:
    """Into `parts`, in float32 and eval mode, what was written of `state_of(parts)`.

    Errors: as `read_tensors` and `load_strict`.
    """
    state = read_tensors(path)
    for name, part in parts.items():
        start = f"{name}."
        own = {key.removeprefix(start): v.float() for key, v in state.items() if key.startswith(start)}
        load_strict(part.eval(), own, source=f"{path} ({start}*)")


def require_keys(state: State, keys: Sequence[str], source: str, what: str) -> None:
    """Errors: ValueError saying that `source` is not `what`, if a key is missing."""
    missing = [key for key in keys if key not in state]
    if missing:
        raise ValueError(f"{source} is not {what}: it lacks {some(missing)} and has {some(list(state))}")


def count_modules(state: State, pattern: str) -> int:
    """How many modules of a list there are: one more than the largest number `pattern` captures in a key."""
    return 1 + max((int(match[1]) for key in state if (match := re.match(pattern, key))), default=-1)


def some(names: list[str], limit: int = 4) -> str:
    """The first few names and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _shards(state: State, dtype: torch.dtype, shard_bytes: int) -> list[list[str]]:
    """Keys in order, in groups of at most `shard_bytes` (or one tensor), and at least one group."""
    groups: list[list[str]] = [[]]
    left = shard_bytes
    for key, value in state.items():
        size = value.numel() * dtype.itemsize
        if size > left and groups[-1]:
            groups.append([])
            left = shard_bytes
        groups[-1].append(key)
        left -= size
    return groups


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    partial = _partial(path)
    try:
        save_file(tensors, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    partial = _partial(path)
    partial.write_text(json.dumps(dict(content), indent=2) + "\n")
    os.replace(partial, path)


def _partial(path: Path) -> Path:
    """Where a file is written before it is there; each of several processes has its own."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def _remove_old_weights(folder: Path, written: set[str]) -> None:
    """What an earlier model of another size left there: it would be read in place of the new one."""
    shards = [path.name for path in folder.glob("model-*-of-*.safetensors")]
    for name in {_SINGLE, _INDEX, *shards} - written:
        (folder / name).unlink(missing_ok=True)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        names = json.loads(index.read_text())["weight_map"]
        return {str(key): str(name) for key, name in names.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged ({first_line(error)}): download it again") from error


def _opened(path: Path):
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({first_line(error)}): download it again"
        ) from error


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({first_line(error)}): download it again"
        ) from error


class _Inert(dict[str, object]):
    """Stands in for the callback classes named inside a Lightning file; does nothing."""


def _read_pickle(path: Path) -> object:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped and not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is truncated ({path.stat().st_size} bytes, no end record): download it again"
        )
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        inert: list[Any] = [
            (_Inert, name) for name in names if name.startswith(("pytorch_lightning.", "lightning."))
        ]
        with torch.serialization.safe_globals(inert):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower():
            raise ValueError(f"{path} is truncated or no PyTorch file: download it again") from error
        raise ValueError(
            f"{path} holds Python objects that could run code and is refused (weights_only=True): "
            "save its state dict alone, where you trust it, and load that"
        ) from error
    except (EOFError, RuntimeError, OSError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path} is truncated or no PyTorch file ({first_line(error)}): download it again"
        ) from error
