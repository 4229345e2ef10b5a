"""The words of a command line: what tyro would pass over, and what it complains of in our words."""

import re
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints

from swiftmask.cli.checks import option
from swiftmask.core.ranges import expected_of

_RULE = re.compile("[─-]{3,}")
_WRONG = re.compile(r"Error parsing (--[\w-]+)|invalid choice .* for argument '(--[\w-]+)'")
_NO_VALUE = re.compile(r"Missing value for argument '(--[\w-]+)")
_MISSING = re.compile(r"^[│| ] {5}(--[\w-]+|[A-Z]+)( |$)")
_TRUTHS = ("true", "false", "yes", "no", "on", "off")


def check_words(command_class: type, args: Sequence[str]) -> None:
    """Errors: ValueError for an option that is given twice, of which tyro would take the last, and for the
    value of an option that takes none, which tyro would take for the next argument.
    """
    known = _options(command_class)
    seen: set[tuple[type, str]] = set()
    for word, following in pairwise([*args, ""]):
        name, equals, value = word.partition("=")
        field = known.get(name.replace("_", "-"))
        if field is None:
            continue
        owner, attribute = field
        hint = get_type_hints(owner)[attribute]
        if field in seen:
            all_of_it = f": give all its values after one {name}" if _is_tuple(hint) else ""
            raise ValueError(f"{name} is given twice{all_of_it}")
        seen.add(field)
        if hint is bool and (equals or following.lower() in _TRUTHS):
            raise ValueError(f"{name} takes no value, got {value if equals else following!r}")


def complaint(command_class: type, args: Sequence[str], boxed: str) -> str:
    """What tyro says in a box (of lines, or in ASCII) on one line, with what an option takes."""
    known, text = _options(command_class), flatten(boxed)
    if text.startswith("Missing from") and (missing := _missing(command_class, args, boxed)):
        return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    if found := _NO_VALUE.match(text):
        return f"{found[1]} needs a value: {expected_of(*known[found[1]])}"
    if found := _WRONG.match(text):
        name = found[1] or found[2]
        got = " ".join(_values(args, known, known[name]))
        return f"{name} must be {expected_of(*known[name])}, got {got!r}"
    return text


def flatten(boxed: str) -> str:
    """The text in a box on one line, with the option that tyro thinks was meant."""
    lines = [line.strip("│╭╮╰╯|+ \n") for line in boxed.splitlines()][1:]
    said: list[str] = []
    for line in lines:
        if _RULE.fullmatch(line) and said:
            break
        if not _RULE.fullmatch(line):
            said.append(line)
    message = " ".join(part for part in said if part)
    for heading in ("Got errors:", "For full helptext"):
        message = message.split(heading)[0].strip()
    suggests = any(line.startswith("Perhaps you meant") for line in lines)
    meant = [line.split()[0] for line in lines if re.match("--[a-z]", line)] if suggests else []
    return f"{message} (did you mean {' or '.join(meant)}?)" if meant else message.rstrip(".")


def _options(command_class: type) -> dict[str, tuple[type, str]]:
    """Fields by the options that set them; options that commands share lie in a dataclass of their own."""
    known: dict[str, tuple[type, str]] = {}
    for field in fields(command_class):
        if is_dataclass(shared := type(field.default)):
            known |= _options(shared)
        else:
            known[option(field.name)] = command_class, field.name
    for name, hint in get_type_hints(command_class, include_extras=True).items():
        for extra in getattr(hint, "__metadata__", ()):
            known |= dict.fromkeys(getattr(extra, "aliases", None) or (), (command_class, name))
    return known


def _missing(command_class: type, args: Sequence[str], boxed: str) -> list[str]:
    """Required arguments and options that tyro names, the former by their type alone."""
    named = [found[1] for line in boxed.splitlines() if (found := _MISSING.match(line))]
    options = [name for name in named if name.startswith("--")]
    given = {word.partition("=")[0] for word in args}
    required = [field.name for field in fields(command_class) if field.default is MISSING]
    arguments = [name.upper() for name in required if not {option(name)} & {*options, *given}]
    return [*arguments[: len(named) - len(options)], *options]


def _values(args: Sequence[str], known: dict[str, tuple[type, str]], field: tuple[type, str]) -> list[str]:
    """The words that follow an option."""
    values: list[str] | None = None
    for word in args:
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            if values is not None:
                break
            if known.get(name.replace("_", "-")) == field:
                values = [value] if equals else []
        elif values is not None:
            values.append(word)
    return values or []


def _is_tuple(hint: Any) -> bool:
    return get_origin(hint) is tuple or any(_is_tuple(inner) for inner in get_args(hint))
