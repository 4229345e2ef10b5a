"""Safetensors files that know when a byte of theirs has changed: what a long run reads back of its own.

The file's metadata holds a CRC-32 of names, shapes, numbers and the rest of the metadata. Models as published
have none: their files are read by reading.py.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from swiftmask.core.settings import first_line

_CHECKSUM = "checksum"


def sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata to write with `tensors` (contiguous, on the host), checksum included."""
    return {**metadata, _CHECKSUM: _checksum(tensors, metadata)}


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. Errors: ValueError naming the file if it is damaged, or was not sealed."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)})") from error
    if metadata.pop(_CHECKSUM, None) != _checksum(tensors, metadata):
        raise ValueError(f"{path} is damaged (its checksum differs)")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    checksum = zlib.crc32(json.dumps(dict(metadata), sort_keys=True).encode())
    for key in sorted(tensors):
        value = tensors[key]
        checksum = zlib.crc32(f"{key} {value.dtype} {tuple(value.shape)}".encode(), checksum)
        if value.numel():
            checksum = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
