"""JSON files, and the settings they hold as frozen dataclasses.

Every JSON file of the package is read by `read_json` or `parse_json`, and every `config.json` of ours is one
dataclass: `settings_of` checks keys, types and ranges, at any depth. `check_sizes` compares sizes with the
weights on disk, so that nothing large is built of a damaged number.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_Settings = TypeVar("_Settings")

POINTER = b"version https://git-lfs"
"""How the text file starts that git leaves in place of a large file."""

_MODULES = frozenset(
    {
        "depth",
        "encoder_depth",
        "decoder_depth",
        "head_depth",
        "num_blocks",
        "num_double_blocks",
        "num_single_blocks",
        "num_res_blocks",
        "layers_per_block",
        "num_hidden_layers",
    }
)
"""Settings that count modules, each of which has tensors on disk."""

_UNSEEN = frozenset({"resolution", "attn_resolutions", "decoder_attn_resolutions", "image_size"})
"""Settings in pixels, which no tensor shows."""


def read_json(path: Path, *, expected: str = "expected a JSON file") -> dict[str, Any]:
    """A JSON object.

    Args:
        expected: what to say if there is no such file, as in "expected the folder of a shortcut".

    Errors: FileNotFoundError; ValueError if it is damaged or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is a folder" if path.is_dir() else f"no {path}: {expected}")
    refuse_pointer(path)
    with path.open("rb") as file:
        return parse_json(file.read(), source=str(path))


def parse_json(text: str | bytes, *, source: str) -> dict[str, Any]:
    """The JSON object in a text. A byte order mark is skipped.

    Errors: ValueError naming `source` for another value, a key given twice, NaN, or half of a surrogate pair.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        if not text.strip():
            raise ValueError("it is empty")
        content = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError) as error:
        deep = isinstance(error, RecursionError)
        reason = "nested too deeply" if deep else str(error).splitlines()[0][:160]
        raise ValueError(f"{source} is damaged ({reason}): expected a JSON object") from error
    if not isinstance(content, dict):
        raise ValueError(f"{source} is damaged: expected a JSON object, got {type(content).__name__}")
    return content


def refuse_pointer(path: Path) -> None:
    """Errors: ValueError for a file that git left in place of a large one."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ValueError(
                f"{path} is a Git-LFS pointer, not the file itself: run `git lfs pull` in its repository"
            )


def read_settings(kind: type[_Settings], path: Path, *, expected: str) -> _Settings:
    """A JSON file as a dataclass. Errors: as `read_json` and `settings_of`."""
    return settings_of(kind, read_json(path, expected=expected), source=str(path))


def settings_of(kind: type[_Settings], content: object, *, source: str, name: str = "") -> _Settings:
    """A JSON object as a dataclass, whose fields may be dataclasses, too. Lists become tuples.

    Args:
        name: of the object within the file, for complaints.

    Errors: ValueError naming `source` and the key for an unknown or missing key, or a value that the
    dataclass refuses.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{source}: {name or 'the file'} must be a JSON object, got {_shown(content)}")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    prefix = f"{name}." if name else ""
    hints = get_type_hints(kind)
    for key in known.keys() & content.keys():  # of another kind: its keys would only be called unknown
        if get_origin(hints[key]) is Literal and content[key] not in get_args(hints[key]):
            choices = " or ".join(map(repr, get_args(hints[key])))
            raise ValueError(f"{source}: {prefix}{key} must be {choices}, got {_shown(content[key])}")
    strange = [f"unknown key {prefix}{key}" for key in content if key not in known]
    required = (f for f in known.values() if f.default is MISSING and f.default_factory is MISSING)
    strange += [f"{prefix}{field.name} is missing" for field in required if field.name not in content]
    if strange:
        raise ValueError(f"{source}: {', '.join(strange[:4])[:200]}")
    values = {
        key: _value(hints[key], value, source=source, name=f"{prefix}{key}") for key, value in content.items()
    }
    with about(f"{source}: {name}" if name else source, source):
        return kind(**values)


@contextmanager
def about(source: str, named: str | None = None) -> Iterator[None]:
    """Put `source` before the message of a ValueError that does not have it (or `named`) yet."""
    try:
        yield
    except ValueError as error:
        if (named or source) in str(error):
            raise
        raise ValueError(f"{source}: {error}") from error


def check_sizes(settings: Any, shapes: Mapping[str, Any], *, source: str) -> None:
    """Check sizes against the tensors of the weights file before a network of these sizes is built.

    Errors: ValueError for a size above every axis on disk, or more modules than there are tensors.
    """
    largest = max((axis for value in shapes.values() for axis in value.shape), default=0)
    for field in fields(settings):
        value = getattr(settings, field.name)
        counts = field.name in _MODULES
        bound = len(shapes) if counts else largest
        many = value if isinstance(value, tuple) else (value,)
        sizes = [size for size in (*many, len(many)) if type(size) is int]
        if field.name not in _UNSEEN and max(sizes) > bound:
            found = f"{bound} tensors" if counts else f"no axis longer than {bound}"
            raise ValueError(f"{source}: {field.name} is {_shown(value)}, but the weights have {found}")


def _value(annotation: Any, value: object, *, source: str, name: str) -> object:
    """A JSON value for a field of this type; what it is checked against is the dataclass's business."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    nested = [kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)]
    if nested and not (value is None and type(None) in kinds):
        return settings_of(_nearest(nested, value), value, source=source, name=name)
    if get_origin(annotation) is dict and not isinstance(value, dict):
        raise ValueError(f"{source}: {name} must be a JSON object, got {_shown(value)}")
    if isinstance(value, list) and any(get_origin(kind) is tuple for kind in kinds):
        return tuple(value)
    return value


def _nearest(kinds: list[type], value: object) -> type:
    """Of several dataclasses, the one that shares most keys with the value."""
    keys = set(value) if isinstance(value, dict) else set()
    return max(kinds, key=lambda kind: len(keys & {field.name for field in fields(kind)}))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
