"""Weights and settings on disk: loaded strictly, written whole or not at all.

Shared by models and methods, which may not import each other. Large models are several files with an index,
in the layout of the Hugging Face hub; `weight_files`, `headers` and `fill` read them with no more than one
tensor in memory beside the model. How one file is read is reading.py's business.

Whatever is read into a model passes `weights_like`: finite numbers of a float dtype, cast to the model's.
A module that `load_strict` or `fill` has filled is frozen; training code says what it trains.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from swiftmask.core.reading import State, opened, read_tensors, shape_of, some
from swiftmask.core.settings import check_sizes, first_line, read_json, read_settings
from swiftmask.core.writing import write_json, written_whole

S = TypeVar("S")
C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

SHARD_BYTES = 5 * 10**9
"""Weights larger than this on disk are split, as the hub does."""

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def load_strict(module: nn.Module, state: State, *, source: str) -> None:
    """Copy `state` into `module` (or, if it is on the meta device, adopt its tensors) in the module's
    precision, and freeze the module.

    Errors: ValueError naming the first missing and unexpected keys and wrong shapes, with how many there are;
    or a tensor that holds no weights (`weights_like`).
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
    cast = {key: weights_like(own[key], state[key], source=f"{source}: {key}") for key in own}
    module.load_state_dict(cast, assign=any(value.is_meta for value in own.values()))
    module.requires_grad_(False)


def weights_like(place: Tensor, value: Tensor, *, source: str) -> Tensor:
    """`value` in the precision of `place`. Where that is no float (counters), `value` itself.

    Errors: ValueError naming `source` unless `value` is a tensor of float16, bfloat16, float32 or
    float64, and finite in the precision of `place`. Meta tensors have no numbers to check.
    """
    if not place.is_floating_point():
        return value
    require_floats(value, source=source)
    cast = value.to(place.dtype)
    if not cast.is_meta and cast.numel() and not torch.stack(cast.aminmax()).isfinite().all():
        precision = str(place.dtype).removeprefix("torch.")
        raise ValueError(
            f"{source} holds NaN or infinite numbers in {precision}: the file is damaged or its training "
            "diverged (or load it as float32, if it is sound)"
        )
    return cast


def require_floats(value: Tensor, *, source: str) -> None:
    """Errors: ValueError naming `source` for a tensor of another dtype than those of weights."""
    if value.dtype not in _FLOATS:
        kind = str(value.dtype).removeprefix("torch.")
        raise ValueError(
            f"{source} is {kind}: expected float16, bfloat16 or float32: convert the weights first"
        )


def require_finite(state: State, *, source: str, counters: Sequence[str] = ()) -> None:
    """What another library will read: as `weights_like` says, but for keys that end with one of `counters`.

    Errors: ValueError naming `source` and the key.
    """
    for key, value in state.items():
        if not key.endswith(tuple(counters)):
            weights_like(torch.empty(0), value, source=f"{source}: {key}")


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

    `config.json` is removed before the first old file is replaced, and comes last: a folder that has one is
    complete, and a disk that is full leaves the old model. Weights are `model.safetensors`; if they are more
    than `shard_bytes`, several files with an index, one of which at a time is in memory as `dtype`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(state, dtype, shard_bytes)
    names = [_SINGLE]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for name, keys in zip(names, shards, strict=True):
        with written_whole(folder / name) as partial:
            save_file({key: _written(state[key], dtype).contiguous() for key in keys}, partial)
            (folder / "config.json").unlink(missing_ok=True)  # some old files beside new ones are no model
    if len(shards) > 1:
        homes = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        write_json(folder / _INDEX, {"weight_map": homes})
    _remove_old_weights(folder, {*names, *([_INDEX] if len(shards) > 1 else [])})
    write_json(folder / "provenance.json", provenance)
    write_json(folder / "config.json", config)


def _written(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights in the precision of the file; whole numbers, such as places in a table, as they are."""
    return value.to(dtype) if value.is_floating_point() else value


def weight_files(folder: Path) -> dict[str, Path]:
    """Which file of a model folder holds each tensor: `model.safetensors` all of them, or by the index.

    Errors: FileNotFoundError naming what is missing; ValueError for a damaged file.
    """
    single, index = folder / _SINGLE, folder / _INDEX
    if single.is_file():
        with opened(single) as file:
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
        with opened(path) as file:
            held = set(file.keys())
            for key in (key for key, home in files.items() if home == path):
                if key not in held:
                    raise ValueError(f"{path} lacks {key}, which the index places there: download it again")
                found[key] = shape_of(file, key)
    return found


def fill(module: nn.Module, files: Mapping[str, Path], *, prefix: str = "") -> None:
    """Read every tensor of `module` (`prefix` before its key on disk) into its place, in the precision and on
    the device it has there, and freeze the module. What keys and shapes there are, `headers` and
    `load_strict` check before.

    A file is opened for each tensor: what was read stays mapped, and counted, until it is closed.

    Errors: ValueError for a tensor that holds no weights (`weights_like`).
    """
    with torch.no_grad():
        for key, place in module.state_dict().items():
            path = files[prefix + key]
            with opened(path) as file:
                value = file.get_tensor(prefix + key)
                place.copy_(weights_like(place, value, source=f"{path}: {prefix}{key}"))
    module.requires_grad_(False)


def write_model(
    folder: str | Path,
    settings: Any,
    parts: Mapping[str, nn.Module],
    *,
    provenance: Mapping[str, object],
    dtype: torch.dtype,
) -> None:
    """A model folder, as `write_folder` writes it: the dataclass `settings` is its config.json."""
    write_folder(folder, state_of(parts), config=asdict(settings), provenance=provenance, dtype=dtype)


def read_model_settings(kind: type[S], folder: Path, sized: Sequence[str]) -> S:
    """The dataclass that `write_model` wrote. Its fields `sized` are compared with the weights on disk.

    Errors: FileNotFoundError; ValueError for a damaged file, or sizes of other weights.
    """
    path = folder / "config.json"
    settings = read_settings(kind, path, expected="expected a model folder, see `swiftmask convert`")
    shapes = headers(weight_files(folder))
    for name in sized:
        check_sizes(getattr(settings, name), shapes, source=str(path))
    return settings


def random_network(build: Callable[[C], M], released: Mapping[str, C], name: str, *, seed: int = 0) -> M:
    """A network of a released size with random float32 weights: enough to measure speed.

    Errors: ValueError for an unknown size.
    """
    if name not in released:
        raise ValueError(f"unknown released size {name!r}: choose one of {', '.join(released)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(released[name]).eval()


def state_of(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weights of several networks as one state, each key after its part's name."""
    return {
        f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
    }


def load_parts(path: Path, parts: Mapping[str, nn.Module]) -> None:
    """Into `parts`, frozen and in eval mode, what was written of `state_of(parts)`.

    Errors: as `read_tensors` and `load_strict`.
    """
    state = read_tensors(path)
    for name, part in parts.items():
        start = f"{name}."
        own = {key.removeprefix(start): v for key, v in state.items() if key.startswith(start)}
        load_strict(part.eval(), own, source=f"{path} ({start}*)")


def require_keys(state: State, axes: Mapping[str, int], source: str, what: str) -> None:
    """Errors: ValueError saying that `source` is not `what`, if a key is missing, or its tensor has another
    number of axes or no numbers.
    """
    missing = [key for key in axes if key not in state]
    if missing:
        raise ValueError(f"{source} is not {what}: it lacks {some(missing)} and has {some(list(state))}")
    for key, count in axes.items():
        shape = tuple(state[key].shape)
        if len(shape) != count or 0 in shape:
            raise ValueError(f"{source} is not {what}: {key} has shape {shape}, expected {count} axes")


def count_modules(state: State, pattern: str) -> int:
    """How many modules of a list there are: one more than the largest number `pattern` captures in a key, and
    no more than there are keys.
    """
    largest = max((int(match[1]) for key in state if (match := re.match(pattern, key))), default=-1)
    return min(1 + largest, len(state))


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


def _remove_old_weights(folder: Path, written: set[str]) -> None:
    """What an earlier model of another size left there: it would be read in place of the new one."""
    shards = [path.name for path in folder.glob("model-*-of-*.safetensors")]
    for name in {_SINGLE, _INDEX, *shards} - written:
        (folder / name).unlink(missing_ok=True)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        names = read_json(index, expected="expected the index of the shards")["weight_map"]
        return {str(key): str(name) for key, name in names.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged ({first_line(error)}): download it again") from error
