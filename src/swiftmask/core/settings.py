"""JSON files, and the settings they hold as frozen dataclasses.

Every JSON file of the package is read by `read_json` or `parse_json`, and every `config.json` of ours is one
dataclass: `settings_of` checks keys, types and ranges, at any depth. What we measured and wrote is a record:
`record_of` checks the type of every field. `check_sizes` compares sizes with the weights on disk, so that
nothing large is built of a damaged number.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from math import isfinite
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_Settings = TypeVar("_Settings")
_Json = TypeVar("_Json", dict[str, Any], list[Any])

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

_NAMED = 3
"""Settings that are named where more than so many differ."""


def read_json(path: Path, *, expected: str = "expected a JSON file") -> dict[str, Any]:
    """A JSON object.

    Args:
        expected: what to say if there is no such file, as in "expected the folder of a shortcut".

    Errors: FileNotFoundError; ValueError if it is damaged or something else.
    """
    return parse_json(read_text(path, expected=expected), source=str(path))


def read_text(path: Path, *, expected: str) -> str:
    """A text in UTF-8 without its byte order mark. Errors: as `read_json`."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is a folder: {expected}" if path.is_dir() else f"no {path}: {expected}"
        )
    refuse_pointer(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged (no UTF-8 at byte {error.start}): {expected}") from error


def parse_json(text: str | bytes, *, source: str) -> dict[str, Any]:
    """The JSON object in a text. A byte order mark is skipped.

    Errors: ValueError naming `source` for another value, a key given twice, NaN, or half of a surrogate pair.
    """
    return _parsed(text, source, dict, "object")


def parse_json_list(text: str | bytes, *, source: str) -> list[Any]:
    """The JSON list in a text. Errors: as `parse_json`."""
    return _parsed(text, source, list, "list")


def _parsed(text: str | bytes, source: str, kind: type[_Json], what: str) -> _Json:
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        if not text.strip():
            raise ValueError("it is empty")
        content = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError) as error:
        known = {RecursionError: "nested too deeply", UnicodeEncodeError: "half of a surrogate pair"}
        reason = known.get(type(error)) or str(error).splitlines()[0][:160]
        raise ValueError(f"{source} is damaged ({reason}): expected a JSON {what}") from error
    if not isinstance(content, kind):
        raise ValueError(f"{source} is damaged: expected a JSON {what}, got {type(content).__name__}")
    return content


def difference(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Settings that differ, a few of them by name; empty if none does. Those of "sampling" count singly."""
    old, new = _flat(there), _flat(now)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    named = [f"{key} {old.get(key)} there, {new.get(key)} now" for key in keys[:_NAMED]]
    return "; ".join(named) + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    sampling = settings.get("sampling") or {}
    return {**{key: value for key, value in settings.items() if key != "sampling"}, **sampling}


def first_line(error: Exception) -> str:
    """What an error says, on one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


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


def record_of(kind: type[_Settings], content: object, *, source: str) -> _Settings:
    """A JSON object that we wrote as a dataclass: as `settings_of`, and every field of its type.

    Errors: ValueError naming `source` and the field.
    """
    found = settings_of(kind, content, source=source)
    if misfit := _misfit(found):
        raise ValueError(f"{source}: {misfit}")
    return found


def _misfit(found: Any) -> str:
    """What is wrong with the first field of another type; nothing if there is none."""
    for name, annotation in get_type_hints(type(found)).items():
        value = getattr(found, name)
        if is_dataclass(value) and (inner := _misfit(value)):
            return f"{name}.{inner}"
        if not _fits(value, annotation):
            wanted = annotation.__name__ if isinstance(annotation, type) else annotation
            return f"{name} must be {wanted}, got {_shown(value)}"
    return ""


def _fits(value: object, annotation: Any) -> bool:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(_fits(value, kind) for kind in inner)
    if origin is Literal:
        return value in inner
    if origin in (dict, list, tuple):
        return type(value) is origin and _all_fit(value, inner)
    if annotation is float:
        return isinstance(value, int | float) and type(value) is not bool and isfinite(value)
    return type(value) is annotation and not (is_dataclass(annotation) and _misfit(value))


def _all_fit(value: Any, inner: tuple[Any, ...]) -> bool:
    """Whether what is in a list, a tuple or a dict is of the types in its brackets."""
    if isinstance(value, tuple) and Ellipsis not in inner:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    values = value.values() if isinstance(value, dict) else value
    return all(_fits(each, inner[isinstance(value, dict)]) for each in values)


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


def check_foreign_sizes(content: Mapping[str, Any], shapes: Mapping[str, Any], *, source: str) -> None:
    """As `check_sizes`, of a config that another library defines: of objects in it, too. Numbers up to 65536
    may be anything, such as ids.

    Errors: ValueError for a number that the weights do not bear out.
    """
    largest = max((axis for value in shapes.values() for axis in value.shape), default=0)
    for key, value in content.items():
        if isinstance(value, dict):
            check_foreign_sizes(value, shapes, source=source)
        bound = len(shapes) if key in _MODULES else max(largest, 2**16)
        if type(value) is int and value > bound:
            found = f"{bound} tensors" if key in _MODULES else f"no axis longer than {largest}"
            raise ValueError(f"{source}: {key} is {_shown(value)}, but the weights have {found}")
    side, patch = content.get("image_size"), content.get("patch_size")
    if type(side) is int and type(patch) is int and (side // max(1, patch)) ** 2 > largest:
        raise ValueError(
            f"{source}: image_size is {side} in patches of {patch}, but the weights have no axis "
            f"longer than {largest}"
        )


def _value(annotation: Any, value: object, *, source: str, name: str) -> object:
    """A JSON value for a field of this type; what it is checked against is the dataclass's business."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    nested = [kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)]
    if nested and not (value is None and type(None) in kinds):
        return settings_of(_nearest(nested, value), value, source=source, name=name)
    if get_origin(annotation) is dict and not isinstance(value, dict):
        raise ValueError(f"{source}: {name} must be a JSON object, got {_shown(value)}")
    if isinstance(value, list | dict):
        value = _inner_values(kinds, value, source=source, name=name)
    if isinstance(value, list) and any(get_origin(kind) is tuple for kind in kinds):
        return tuple(value)
    return value


def _inner_values(kinds: tuple[Any, ...], value: Any, *, source: str, name: str) -> Any:
    """What is in a list or an object whose type is a list or dict of dataclasses."""
    inner = next((get_args(k)[-1] for k in kinds if get_origin(k) is type(value)), None)
    if not is_dataclass(inner):
        return value
    if isinstance(value, dict):
        return {k: _value(inner, v, source=source, name=f"{name}.{k}") for k, v in value.items()}
    return [_value(inner, v, source=source, name=f"{name}[{i}]") for i, v in enumerate(value)]


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
