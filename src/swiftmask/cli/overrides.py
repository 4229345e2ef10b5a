"""`key=value` on top of a recipe's frozen dataclass, typed by its annotations."""

import types
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from swiftmask.registry import suggestion

Config = TypeVar("Config")


def override(config: Config, assignments: Sequence[str]) -> Config:
    """The config with `a.b=value` applied. Errors: ValueError for an unknown key or a bad value."""
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"expected key=value, got {assignment!r}")
        known = [name for name, _ in leaves(config)]
        if key not in known:
            raise ValueError(f"unknown setting {key!r}{suggestion(key, known)}")
        config = _replaced(config, key.split("."), text, key)
    return config


def leaves(config: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every setting with its dotted name."""
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _replaced(config: Any, path: list[str], text: str, key: str) -> Any:
    name, rest = path[0], path[1:]
    if rest:
        return replace(config, **{name: _replaced(getattr(config, name), rest, text, key)})
    annotation = get_type_hints(type(config))[name]
    try:
        value = _parsed(text, annotation)
    except ValueError as error:
        expected = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        raise ValueError(f"{key} expects {expected}, got {text!r}") from error
    return replace(config, **{name: value})


def _parsed(text: str, annotation: Any) -> object:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _parsed_union(text, args)
    if origin is Literal:
        return _chosen(text, args)
    if origin is tuple:
        parts = [part for part in text.strip("()").split(",") if part.strip()]
        kinds = [args[0]] * len(parts) if args[-1] is Ellipsis else args
        if len(kinds) != len(parts):
            raise ValueError(text)
        return tuple(_parsed(part.strip(), kind) for part, kind in zip(parts, kinds, strict=True))
    if annotation is bool:
        return _chosen(text.lower(), {"true": True, "1": True, "false": False, "0": False})
    if annotation in (int, float, str, Path):
        return annotation(text)
    raise ValueError(text)


def _parsed_union(text: str, kinds: tuple[Any, ...]) -> object:
    if type(None) in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        if kind is not type(None):
            try:
                return _parsed(text, kind)
            except ValueError:
                continue
    raise ValueError(text)


def _chosen(text: str, choices: tuple[Any, ...] | dict[str, Any]) -> object:
    table = choices if isinstance(choices, dict) else {str(choice): choice for choice in choices}
    if text not in table:
        raise ValueError(text)
    return table[text]
