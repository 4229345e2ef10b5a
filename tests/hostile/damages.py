"""What happens to files: cut, flipped, swapped, written by a program that kept the wrong thing, or an enemy.

Every kind of file has its damages, made from a sound file of its kind.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

WRAPPERS = ("model_ema", "model_state_dict", "state_dict", "model")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
NOT_FLOATS = (torch.int32, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64)
FLIPS = 10


@dataclass(frozen=True)
class Damage:
    """What a file became.

    Attributes:
        content: None is a folder in its place.
        harmless: whether it may still be read, as what it was.
    """

    name: str
    content: bytes | None
    harmless: bool = False


def damages(path: Path, kind: str, marker: Path) -> Iterator[Damage]:
    """Those of a sound file. `marker` is what code in a file would make."""
    content = path.read_bytes()
    for damage in chain(anything(content, kind), DAMAGES[kind](content, marker)):
        yield replace(damage, harmless=damage.harmless or kind in MADE_AGAIN)


def anything(content: bytes, kind: str) -> Iterator[Damage]:
    """Of any file."""
    yield Damage("a folder", None)
    yield Damage("empty", b"")
    yield Damage("a Git-LFS pointer", POINTER)
    yield Damage("noise", np.random.default_rng(0).bytes(5000))
    yield Damage("zeros", bytes(1000))
    yield Damage("a PNG", b"\x89PNG\r\n\x1a\n" + bytes(100))
    for cut in (1, len(content) // 4, len(content) // 2, len(content) - 1):
        if 0 < cut < len(content) and kind != "text":
            yield Damage(f"first {cut} bytes", content[:cut], harmless=kind not in WHOLE)
    header = struct.unpack("<Q", content[:8])[0] + 7 if kind == "safetensors" else HEADERS.get(kind, 300)
    for place in sorted({*np.linspace(0, min(len(content) - 1, header), FLIPS, dtype=int).tolist()}):
        flipped = bytearray(content)
        flipped[place] ^= 0xFF
        yield Damage(f"byte {place} flipped", bytes(flipped), harmless=True)


def of_safetensors(content: bytes, _: Path) -> Iterator[Damage]:
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    metadata = header.pop("__metadata__", None)
    state = load(content)
    for name, changed, harmless in changed_states(state):
        yield Damage(name, save(changed, metadata), harmless)
    first = next(iter(header))
    for name, text in {
        "a huge shape": json.dumps({**header, first: {**header[first], "shape": [10**9, 10**9]}}),
        "a negative shape": json.dumps({**header, first: {**header[first], "shape": [-1]}}),
        "offsets beyond the end": json.dumps(
            {**header, first: {**header[first], "data_offsets": [0, 10**15]}}
        ),
        "a nested header": "[" * 50_000,
        "a header that is a list": "[]",
        "no tensors": "{}",
        "a tensor of null": json.dumps({**header, first: None}),
    }.items():
        yield Damage(name, struct.pack("<Q", len(text)) + text.encode() + data)
    yield Damage("a header of 2^63 bytes", b"\xff" * 8 + content[8:])
    yield Damage("a pickle", _saved({"weight": torch.zeros(2, 2)}))
    yield Damage("JSON", b'{"model": "maskgit"}')


def of_pickle(content: bytes, marker: Path) -> Iterator[Damage]:
    whole = torch.load(io.BytesIO(content), weights_only=False)
    state = next((whole[key] for key in WRAPPERS if isinstance(whole.get(key), Mapping)), whole)

    def rewrapped(changed: object) -> object:
        key = next((key for key in WRAPPERS if whole.get(key) is state), None)
        return changed if key is None else {**whole, key: changed}

    for name, changed, harmless in changed_states(state):
        yield Damage(name, _saved(rewrapped(changed)), harmless)
    first = next(key for key, value in state.items() if value.ndim > 1 and min(value.shape) > 1)
    value = state[first]
    for name, other in {
        "quantised": torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
        "sparse": value.to_sparse(),
        "of compressed rows": value.flatten(1).to_sparse_csr(),
        "expanded from one number": torch.ones(()).expand(value.shape),
        "of overlapping rows": torch.ones(value.numel()).as_strided(value.shape, [1] * value.ndim),
        "huge over one number": torch.ones(1).expand(10**6, 10**6),
        "of a huge first axis": torch.ones(1).expand(10**12, *value.shape[1:]),
        "without numbers": torch.empty_like(value, device="meta"),
        "text": "weights",
        "None": None,
        "a list": [1.0, 2.0],
        "a dict": {"weight": value},
        "a number": 1.0,
        "a NumPy array": value.float().numpy(),
    }.items():
        yield Damage(f"{first} {name}", _saved(rewrapped({**state, first: other})))
    yield Damage("a parameter", _saved(rewrapped({**state, first: torch.nn.Parameter(value.clone())})), True)
    yield Damage("keys that are numbers", _saved(rewrapped(dict(enumerate(state.values())))))
    yield Damage("one key that is a pair", _saved(rewrapped({**state, (1, 2): value})), True)
    yield Damage("a list of tensors", _saved([*state.values()]))
    yield Damage("no tensors", _saved(rewrapped({})))
    yield Damage("one tensor", _saved(value))
    yield Damage("a number alone", _saved(3))
    yield Damage("nested", _saved(_nested(200)))
    yield Damage("a plain pickle of nested lists", b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".")
    yield Damage("a safetensors file", save({"weight": torch.zeros(2, 2)}))
    for name, evil in _evils(marker).items():
        yield Damage(f"{name} beside the weights", _saved({**whole, "callbacks": evil}))
        yield Damage(f"{name} among the weights", _saved(rewrapped({**state, "more": evil})))
        yield Damage(f"{name} alone", _saved(evil))
        yield Damage(f"{name} in a plain pickle", pickle.dumps(evil))
        yield Damage(f"{name} in the old form", _saved({**whole, "callbacks": evil}, zipped=False))


def of_json(content: bytes, _: Path) -> Iterator[Damage]:
    """Of a JSON object that is ours: every value of a wrong type."""
    yield from of_foreign_json(content, _)
    for place, value in _places(json.loads(content)):
        for other in _wrong(value):
            changed = json.loads(content)
            _put(changed, place, other)
            name = f"{'.'.join(map(str, place))} = {other!r:.30}"
            yield Damage(name, json.dumps(changed).encode(), harmless=True)


def of_record(content: bytes, _: Path) -> Iterator[Damage]:
    """Of a JSON object whose numbers may be any."""
    return (damage for damage in of_json(content, _) if "000000" not in damage.name)


def of_foreign_json(content: bytes, _: Path) -> Iterator[Damage]:
    """Of a JSON object that others define."""
    found = json.loads(content)
    key = next(iter(found), "key")
    for name, text in {
        "a list": "[]",
        "a list of itself": json.dumps([found]),
        "a number": "3",
        "a text": '"text"',
        "null": "null",
        "true": "true",
        "nested lists": "[" * 100_000,
        "nested lists that end": "[" * 100_000 + "]" * 100_000,
        "nested objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
        "a value nested deeply": json.dumps(found)[:-1] + ', "deep": ' + "[" * 50_000 + "]" * 50_000 + "}",
        "two objects": json.dumps(found) * 2,
        "an empty object": "{}",
    }.items():
        yield Damage(name, text.encode(), harmless=name == "an empty object")
    text = json.dumps(found)
    yield Damage("no UTF-8", text.encode()[:-1] + b', "\xff\xfe": 1}')
    yield Damage("UTF-16", text.encode("utf-16"))
    yield Damage("UTF-32", text.encode("utf-32"))
    yield Damage("a byte order mark", b"\xef\xbb\xbf" + content, harmless=True)
    yield Damage("a key twice", f"{{{json.dumps(key)}: 0, {text[1:]}".encode(), harmless=True)
    yield Damage("safetensors", save({"weight": torch.zeros(2, 2)}))
    yield Damage("a pickle", _saved({"weight": torch.zeros(2, 2)}))


def of_lines(content: bytes, _: Path) -> Iterator[Damage]:
    """Of JSON lines: the second of them."""
    lines = content.splitlines()
    where = min(1, len(lines) - 1)
    for name, line in {
        "a list": b"[]",
        "a number": b"3",
        "null": b"null",
        "nested": b"[" * 100_000,
        "half a line": lines[where][: len(lines[where]) // 2],
        "no UTF-8": b'{"a": "\xff\xfe"}',
        "an empty object": b"{}",
        "NaN": b"NaN",
        "a NUL": b"\0",
    }.items():
        damaged = b"\n".join([*lines[:where], line, *lines[where + 1 :]]) + b"\n"
        yield Damage(f"line {where + 1} is {name}", damaged, harmless=True)


def of_arrays(content: bytes, marker: Path) -> Iterator[Damage]:
    """Of an `.npz` of float arrays."""
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    first = next(iter(arrays))
    evil = np.array([_evils(marker)["os.mkdir"]], dtype=object)
    for name, other in {
        "whole numbers": arrays[first].astype(np.int64),
        "complex": arrays[first].astype(np.complex64),
        "NaN": np.full_like(arrays[first], np.nan),
        "infinite": np.full_like(arrays[first], np.inf),
        "text": np.array(["a", "b"]),
        "a scalar": np.float64(3),
        "empty": np.zeros((0,)),
        "code": evil,
    }.items():
        yield Damage(f"{first} is {name}", _npz({**arrays, first: other}))
        yield Damage(f"without {first}, {name}", _npz({"another": other}))
    with zipfile.ZipFile(huge := io.BytesIO(), "w") as archive:
        for name in arrays:
            archive.writestr(f"{name}.npy", _npy_of_shape((10**7, 10**7)))
    yield Damage("of huge shapes", huge.getvalue())


def of_array(content: bytes, marker: Path) -> Iterator[Damage]:
    """Of an `.npy`."""
    array = np.load(io.BytesIO(content))
    for name, other in {
        "of one row less": array[:-1],
        "of text": np.array(["a", "b"]),
        "of code": np.array([_evils(marker)["os.mkdir"]], dtype=object),
        "of complex numbers": np.zeros(array.shape, np.complex64),
    }.items():
        file = io.BytesIO()
        np.save(file, other, allow_pickle=True)
        yield Damage(name, file.getvalue())
    yield Damage("of a huge shape", _npy_of_shape((10**7, 10**7)))
    yield Damage("a pickle", pickle.dumps(_evils(marker)["os.mkdir"]))


def nothing(_: bytes, __: Path) -> Iterator[Damage]:
    """What every file suffers is all."""
    return iter(())


WHOLE = ("safetensors", "pickle", "npz", "npy", "other")
"""Kinds of files that have an end of their own; others may lose a little of it."""

HEADERS = {"other": 30, "picture": 7, "npy": 120, "again": 120}
"""Bytes of a header: no checksum tells when the numbers after it change."""

MADE_AGAIN = ("skipped lines", "again")
"""Kinds of files of which what is damaged is made again."""

DAMAGES: dict[str, Callable[[bytes, Path], Iterator[Damage]]] = {
    "safetensors": of_safetensors,
    "pickle": of_pickle,
    "json": of_json,
    "foreign json": of_foreign_json,
    "lines": of_lines,
    "skipped lines": of_lines,
    "again": of_array,
    "npz": of_arrays,
    "npy": of_array,
    "text": nothing,
    "other": nothing,
    "picture": nothing,
    "record": of_record,
}


def changed_states(state: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor], bool]]:
    """Tensors that are no weights of this model: name, state, and whether it may be read all the same."""
    floats = {k: v for k, v in state.items() if v.ndim and not k.startswith("loss.")}
    first, last = next(iter(floats)), [*floats][-1]
    for dtype in NOT_FLOATS:
        name = str(dtype).removeprefix("torch.")
        same = floats[last].dtype == dtype
        yield f"all {name}", {**state, **{key: value.to(dtype) for key, value in floats.items()}}, same
        yield f"{last} {name}", {**state, last: floats[last].to(dtype)}, same
    for number in (float("nan"), float("inf"), -float("inf")):
        for key in (first, last):
            if floats[key].is_floating_point():
                spoilt = floats[key].clone()
                spoilt.view(-1)[-1] = number
                yield f"{number} in {key}", {**state, key: spoilt}, False
    value = floats[first]
    for name, other in {
        "a scalar": torch.ones(()),
        "of no numbers": torch.zeros(0, *value.shape[1:]),
        "one row longer": torch.cat([value, value[:1]]),
        "of one axis more": value[None].contiguous(),
        "flat": value.flatten() if value.ndim > 1 else value[:, None].contiguous(),
    }.items():
        yield f"{first} {name}", {**state, first: other}, False
    yield "all scalars", {key: torch.ones(()) for key in state}, False
    yield "all of no numbers", {key: torch.zeros([0] * value.ndim) for key, value in state.items()}, False
    yield "one key lost", {key: value for key, value in state.items() if key != first}, False
    yield (
        "one key of another name",
        {f"{key}x" if key == first else key: v for key, v in state.items()},
        False,
    )
    yield "one key more", {**state, "more": torch.ones(2)}, True
    for prefix in ("module.", "_orig_mod.module."):
        yield f"{prefix} before every key", {prefix + key: value for key, value in state.items()}, True
    yield "module. before one key", {f"module.{k}" if k == first else k: v for k, v in state.items()}, False


class Evil:
    """Unpickled, it calls something."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.reduced


def _evils(marker: Path) -> dict[str, Evil]:
    return {
        "os.mkdir": Evil(os.mkdir, str(marker)),
        "eval": Evil(eval, f"__import__('os').mkdir({str(marker)!r})"),
        "torch.save": Evil(torch.save, {}, str(marker)),
        "getattr": Evil(getattr, str(marker), "upper"),
    }


def _saved(content: object, *, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _npz(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _npy_of_shape(shape: tuple[int, ...]) -> bytes:
    """A header that promises more than there is."""
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(64)


def _nested(depth: int) -> dict[str, object]:
    content: dict[str, object] = {"weight": torch.zeros(2)}
    for _ in range(depth):
        content = {"model": content}
    return content


def _places(
    value: object, place: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """Every value inside a JSON object, of a list the first."""
    if place:
        yield place, value
    inner = (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    )
    for key, each in inner:
        yield from _places(each, (*place, key))


def _wrong(value: object) -> tuple[object, ...]:
    """Values of other types, and numbers that no such value can be."""
    if isinstance(value, bool):
        return ("x", 5, {})
    if isinstance(value, int):
        return ("x", {}, [[]], True, -(10**12), 10**30)
    if isinstance(value, float):
        return ("x", {}, [[]], True, -(10**30))
    if isinstance(value, str):
        return (5, {}, [[]], True)
    if value is None:
        return ({}, [[]])
    return ("x", {"another": 1}) if isinstance(value, list) else (5, "x", [[]])


def _put(content: Any, place: tuple[str | int, ...], value: object) -> None:
    for key in place[:-1]:
        content = content[key]
    content[place[-1]] = value
