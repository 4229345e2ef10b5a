"""One weights file at a time, as they are published, read with clear errors.

Pickles are only ever read with `weights_only=True`. What becomes of the tensors is files.py's business.
"""

import argparse
import logging
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from swiftmask.core.settings import first_line, refuse_pointer

State = Mapping[str, Tensor]

_log = logging.getLogger(__name__)

_WRAPPERS = ("model_ema", "model_state_dict", "state_dict", "model")
"""Keys under which training scripts keep the weights, beside optimizer state and counters; averaged weights,
which sampling wants, come first.
"""

_TRAINING_PREFIXES = ("module.", "_orig_mod.")
"""What wrapping for several processes and compiling put in front of every key."""

_HEADER_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtypes in the header of a `.safetensors` file."""


DAMAGES = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    AttributeError,
    KeyError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    SyntaxError,
    TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What NumPy, zipfile and PyTorch raise for damaged or foreign files, depending on where they are damaged."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The weights in a `.safetensors`, a `.pth` or a Lightning `.ckpt` file.

    Averaged weights (`model_ema`) are taken before the plain ones beside them. What wrapping a model for
    training puts in front of every key is dropped, and logged.

    Errors: FileNotFoundError; ValueError if truncated, not a checkpoint, a Git-LFS pointer, only readable by
    running its pickle, or with a tensor that is not dense.
    """
    path = Path(path)
    content = _content(path)
    bare = without_training_prefixes(content)
    if bare.keys() != content.keys():
        _log.warning("%s: dropped what training put in front of the keys (%s)", path, next(iter(content)))
    return bare


def read_shapes(path: str | Path) -> dict[str, Tensor]:
    """The keys, shapes and dtypes of a weights file, as tensors on the meta device, keys as `read_tensors`
    gives them. Errors: as `read_tensors`.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and path.is_file():
        with opened(path) as file:
            found = {key: shape_of(file, key) for key in file.keys()}
    else:
        found = {key: torch.empty_like(value, device="meta") for key, value in _content(path).items()}
    return without_training_prefixes(found)


def without_training_prefixes(state: State) -> dict[str, Tensor]:
    """The weights without what training wrapped around them, in any order, in front of every key."""
    bare = dict(state)
    while prefix := next((p for p in _TRAINING_PREFIXES if all(key.startswith(p) for key in bare)), None):
        bare = {key.removeprefix(prefix): value for key, value in bare.items()}
    return bare


def some(names: list[str], limit: int = 4) -> str:
    """The first few names and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _content(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file under the keys they have there. Errors: as `read_tensors`."""
    if not path.is_file():
        raise FileNotFoundError(f"no such weights file: {path} (expected a .pth, .ckpt or .safetensors file)")
    refuse_pointer(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no weights: expected a dict of tensors, got {type(content).__name__}")
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise ValueError(
            f"{path} is no checkpoint of a model: expected tensors (or them under {' or '.join(_WRAPPERS)}), "
            f"got other things under {some(strange)}"
        )
    for key, value in content.items():
        _require_dense(value, f"{path}: {key}")
    return {str(key): value for key, value in content.items()}


def _require_dense(value: Tensor, source: str) -> None:
    """Errors: ValueError unless every number of the tensor is in the file, once and as it is."""
    kind = str(value.layout).removeprefix("torch.")
    kind = "quantized" if value.is_quantized else "without numbers" if value.is_meta else kind
    if kind != "strided":
        raise ValueError(f"{source} is {kind}: expected a dense tensor of numbers: convert the weights first")
    held = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    if value.numel() > held:
        raise ValueError(
            f"{source} has the shape {tuple(value.shape)}, of which the file holds {held} numbers: save a "
            "copy of the weights (tensor.clone())"
        )


def shape_of(file: Any, key: str) -> Tensor:
    """A tensor of an opened `.safetensors` file without its numbers."""
    part = file.get_slice(key)
    dtype = _HEADER_DTYPES.get(part.get_dtype(), torch.uint8)  # the others are of no float either
    return torch.empty(part.get_shape(), dtype=dtype, device="meta")


def opened(path: Path) -> Any:
    """A `.safetensors` file, as a context. Errors: ValueError if it is damaged or a Git-LFS pointer."""
    refuse_pointer(path)
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
        inert.append(argparse.Namespace)  # MAR's trainer keeps its options
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
