"""`key=value` and YAML files on top of a recipe's frozen dataclass, typed by its annotations."""

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from swiftmask.core.settings import first_line
from swiftmask.registry import suggestion

Config = TypeVar("Config")


def override(config: Config, assignments: Sequence[str]) -> Config:
    """The config with every `a.b=value` applied at once, so that their order does not matter.

    Errors: ValueError for an unknown key, a bad value, or settings that do not go together.
    """
    known = [name for name, _ in leaves(config)]
    changes: dict[str, str] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"expected key=value, got {assignment!r}")
        if key not in known:
            raise ValueError(f"unknown setting {key!r}{suggestion(key, known)}")
        changes[key] = text
    return _changed(config, changes)


def read_config_file(path: Path) -> tuple[str | None, list[str]]:
    """The recipe that a YAML file names (key `recipe`), if any, and its settings as `a.b=value`.

    Errors: FileNotFoundError; ValueError for a file that is no mapping of settings, or gives a key twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such config file: {path}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _Once)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML of settings ({first_line(error)})") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} must be a mapping of settings, as in `data: products/`")
    recipe = content.pop("recipe", None)
    if recipe is not None and not isinstance(recipe, str):
        raise ValueError(f"{path}: recipe must be a name, got {recipe!r}")
    return recipe, list(_assignments(content))


def config_file(recipe: str, config: object) -> str:
    """The text of a YAML file that `read_config_file` reads: every setting of a recipe."""
    return yaml.safe_dump({"recipe": recipe, **_nested(config)}, sort_keys=False, allow_unicode=True)


def leaves(config: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every setting with its dotted name."""
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


class _Once(yaml.SafeLoader):
    """Refuses a key that is given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.YAMLError(f"the key {twice} is given twice")
        return super().construct_mapping(node, deep)


def _assignments(content: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _assignments(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={_text(value)}"


def _text(value: object) -> str:
    """A YAML value as one types it."""
    return ",".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _nested(config: Any) -> dict[str, object]:
    """Settings as YAML has them; what is not set is left out."""
    content: dict[str, object] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            below = _nested(value)
            if below:
                content[field.name] = below
        elif value is not None and value != ():
            content[field.name] = _plain(value)
    return content


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _changed(config: Any, changes: Mapping[str, str], prefix: str = "") -> Any:
    """Each dataclass of the tree is made anew once, with all its changes."""
    hints = get_type_hints(type(config))
    values: dict[str, object] = {}
    for name in dict.fromkeys(key.partition(".")[0] for key in changes):
        if name in changes:
            values[name] = _value(changes[name], hints[name], f"{prefix}{name}")
        else:
            below = {
                key.removeprefix(f"{name}."): v for key, v in changes.items() if key.startswith(f"{name}.")
            }
            values[name] = _changed(getattr(config, name), below, f"{prefix}{name}.")
    try:
        return replace(config, **values)
    except ValueError as error:
        raise ValueError(f"{prefix.rstrip('.')}: {error}" if prefix else str(error)) from error


def _value(text: str, annotation: Any, key: str) -> object:
    try:
        return _parsed(text, annotation)
    except ValueError as error:
        raise ValueError(f"{key} expects {_named(annotation)}, got {text!r}") from error


def _named(annotation: Any) -> str:
    """A type as users read it."""
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


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
