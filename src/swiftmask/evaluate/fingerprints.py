"""Fingerprints of weights and settings: SHA-256 over digests of the tensors, each of which is hashed once.

A study asks for the weights of one base model with every row, and every accelerator holds that base model.
Digests are therefore kept per tensor, as long as the tensor lives and is unchanged.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

Rounding = Literal["exact", "bfloat16"]
_SAMPLED = 64

_kept: dict[Rounding, WeakTensorKeyDictionary] = {
    "exact": WeakTensorKeyDictionary(),
    "bfloat16": WeakTensorKeyDictionary(),
}
"""What was hashed before: `_Kept` of each tensor."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A digest, and the state of the tensor that it belongs to."""

    state: tuple[object, ...]
    digest: bytes


def weights_fingerprint(*parts: object) -> str:
    """Sixteen hex digits of weights and settings, the same for weights in float32 and in bfloat16.

    Floats are rounded to bfloat16 first: rounding once or twice is the same.

    Args:
        parts: modules, whose weights are hashed, and feature functions; of both, the `settings` they state.
    """
    return _fingerprint("bfloat16", parts)


def exact_fingerprint(*parts: object) -> str:
    """Sixteen hex digits of weights, their dtypes, and settings. Args: as `weights_fingerprint`."""
    return _fingerprint("exact", parts)


def stated_settings(*parts: object) -> str:
    """The `settings` of parts as text; empty where none has any."""
    stated = [
        (type(part).__name__, settings) for part in parts if (settings := getattr(part, "settings", ()))
    ]
    return repr(stated) if stated else ""


def _fingerprint(rounding: Rounding, parts: tuple[object, ...]) -> str:
    digest = hashlib.sha256(stated_settings(*parts).encode())
    for key, tensor in _tensors(parts):
        dtype = tensor.dtype if rounding == "exact" else ""
        digest.update(f"{key} {tuple(tensor.shape)} {dtype}".encode())
        digest.update(_digest(tensor, rounding))
    return digest.hexdigest()[:16]


def _tensors(parts: tuple[object, ...]) -> Iterator[tuple[str, Tensor]]:
    for part in parts:
        if isinstance(part, nn.Module):
            # With keep_vars these are the parameters themselves, by which digests are kept.
            yield from part.state_dict(keep_vars=True).items()


def _digest(tensor: Tensor, rounding: Rounding) -> bytes:
    kept = _kept[rounding]
    if tensor.is_inference():  # counts no versions
        return _hash(tensor, rounding)
    state, found = _state(tensor), kept.get(tensor)
    if found is None or found.state != state:
        found = kept[tensor] = _Kept(state, _hash(tensor, rounding))
    return found.digest


def _state(tensor: Tensor) -> tuple[object, ...]:
    """Changes with the numbers. Version and address miss a write through `.data`, and a move there and back:
    a few of the numbers tell.
    """
    flat = tensor.detach().reshape(-1)
    sampled = flat[:: max(1, flat.numel() // _SAMPLED)].double().cpu().numpy().tobytes()
    return tensor._version, tensor.data_ptr(), tensor.dtype, sampled


def _hash(tensor: Tensor, rounding: Rounding) -> bytes:
    held = tensor.detach()
    if rounding == "bfloat16" and held.is_floating_point():
        held = held.to(torch.bfloat16)
    return hashlib.sha256(held.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data).digest()
