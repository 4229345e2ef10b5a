"""Wrong numbers and choices of every setting of every recipe: refused as the settings are read.

Settings are found in the recipes' dataclasses; whether a number is legal, the table of ranges says. Sizes of
networks are checked where a `config.json` is read, by the same dataclasses.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from swiftmask.cli.overrides import override
from swiftmask.registry import recipe_module, recipe_names
from tests.hostile.values import flattened, wrong_values


def settings_of(config: Any, prefix: str = "") -> Iterator[tuple[str, type, str, Any]]:
    """Key, the dataclass it is a field of, its name there, and its type."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from settings_of(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", type(config), field.name, hints[field.name]


def is_network(owner: type) -> bool:
    return owner.__module__.startswith(("swiftmask.models", "swiftmask.core.vq", "swiftmask.rewards"))


@pytest.mark.parametrize("recipe", recipe_names())
def test_numbers_and_choices(recipe: str, count: Callable[[int], None]) -> None:
    """Refused with the key, before anything is read."""
    config = recipe_module(recipe).recipe()
    wrong, cases = [], 0
    for key, owner, name, annotation in settings_of(config):
        if is_network(owner) or set(flattened(annotation)) & {str, Path}:
            continue
        for value in wrong_values(owner, name, annotation):
            if value == "" and tuple in {getattr(annotation, "__origin__", None)}:
                continue  # none of them
            cases += 1
            try:
                override(config, [f"{key}={several(annotation, value)}"])
            except ValueError as error:
                said = str(error)
                if name not in said or "\n" in said:
                    wrong.append(f"{key}={value}: {said}")
            except Exception as error:
                wrong.append(f"{key}={value}: {type(error).__name__}: {error}")
            else:
                wrong.append(f"{key}={value}: accepted")
    count(cases)
    assert cases > 20
    if wrong:
        pytest.fail(f"{len(wrong)} of {cases} wrong values:\n" + "\n".join(wrong), pytrace=False)


def several(annotation: Any, value: str) -> str:
    """As many as a tuple of fixed length takes."""
    inner = getattr(annotation, "__args__", ())
    fixed = getattr(annotation, "__origin__", None) is tuple and Ellipsis not in inner
    return ",".join([value] * len(inner)) if fixed else value
