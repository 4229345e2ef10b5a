"""Every `config.json`: what is no setting of it is refused by name. Cases come from the dataclasses."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from swiftmask import accelerate, load
from swiftmask.core.ranges import range_of
from swiftmask.methods.marval.weights import Settings as StudentSettings
from swiftmask.methods.shortcut.weights import Settings as ShortcutSettings
from swiftmask.methods.speed_rl.weights import Settings as PolicySettings
from swiftmask.models.lumina_dimoo.weights import Settings as DimooSettings
from swiftmask.models.mar.weights import Settings as MarSettings
from swiftmask.models.maskgit.weights import Settings as MaskgitSettings
from swiftmask.models.meissonic.weights import Settings as MeissonicSettings
from swiftmask.pipeline import Pipeline
from swiftmask.registry import WEIGHTS
from swiftmask.rewards.scenes import load_reader
from swiftmask.rewards.scenes_networks import ReaderConfig

base = cache(load)

FOLDERS: dict[str, tuple[type, Callable[[Path], object]]] = {
    "maskgit-scenes": (MaskgitSettings, load),
    "mar-scenes": (MarSettings, load),
    "meissonic-scenes": (MeissonicSettings, load),
    "dimoo-scenes": (DimooSettings, load),
    "maskgit-scenes-shortcut": (
        ShortcutSettings,
        lambda path: accelerate(base("maskgit-scenes"), shortcut=path),
    ),
    "dimoo-scenes-shortcut": (ShortcutSettings, lambda path: accelerate(base("dimoo-scenes"), shortcut=path)),
    "mar-scenes-marval": (StudentSettings, lambda path: accelerate(base("mar-scenes"), marval=path)),
    "meissonic-scenes-speed-rl": (
        PolicySettings,
        lambda path: accelerate(base("meissonic-scenes"), speed_rl=path),
    ),
    "scenes-judge": (ReaderConfig, load_reader),
    "scenes-reward": (ReaderConfig, load_reader),
}

HUGE, DEEP = 10**9, 10**30
NUMBERS = (-1, HUGE, DEEP, math.nan, math.inf, "x", True, {}, [[]])
WRONG: dict[object, tuple[object, ...]] = {
    int: (*NUMBERS, 1.5),
    float: (*(n for n in NUMBERS if n != HUGE), 1e300),
    bool: (0, 1, 1.0, "true", {}, []),
    str: (0, True, 1.5, {}, ["x"], "\ud800"),
    tuple: (0, "x", {}, True, [None], [-1], [[]], [HUGE] * 3),
    dict: (0, "x", True, [], [1], {"unknown": 1}),
}


def kinds(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a field's type."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def plain(kind: Any) -> object:
    """The JSON type of a field's type."""
    if get_origin(kind) is dict or is_dataclass(kind):
        return dict
    if get_origin(kind) is tuple:
        return tuple
    return kind if kind in (int, float, bool, NoneType) else str


def mutations(settings: type, content: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[Any]:
    """Where, and a value that is wrong there; MISSING removes the key."""
    yield (*path, "unknown"), 1
    hints = get_type_hints(settings)
    for field in fields(settings):
        here, accepted = (*path, field.name), {plain(kind) for kind in kinds(hints[field.name])}
        if field.default is MISSING:
            yield here, MISSING
        for value in [*(None,), *WRONG[next(iter(accepted - {NoneType}))]]:
            if not acceptable(settings, field.name, value, accepted):
                yield here, value
        for kind in kinds(hints[field.name]):
            inside = content.get(field.name)
            known = {f.name for f in fields(kind)} if is_dataclass(kind) else set()
            if isinstance(inside, dict) and inside.keys() <= known:
                yield from mutations(kind, inside, here)  # type: ignore[arg-type]


def acceptable(settings: type, name: str, value: object, accepted: set[object]) -> bool:
    """Whether a value that is wrong for most fields, or for one alternative of this one, is right here."""
    if value is None:
        return NoneType in accepted
    return type(value) is int and int in accepted and range_of(settings, name).holds(value)


def written(name: str, where: tuple[str, ...], value: object, folder: Path) -> Path:
    """A copy of a bundled folder with another value in its `config.json`."""
    folder.mkdir(exist_ok=True)
    for file in (WEIGHTS / name).iterdir():
        if file.name != "config.json" and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    content: Any = copy.deepcopy(original(name))
    place = content
    for key in where[:-1]:
        place = place[key]
    if value is MISSING:
        del place[where[-1]]
    else:
        place[where[-1]] = value
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@cache
def original(name: str) -> dict[str, Any]:
    return json.loads((WEIGHTS / name / "config.json").read_text())


@pytest.mark.parametrize("name", FOLDERS)
def test_wrong_settings_are_refused_by_file_and_key(name, tmp_path) -> None:
    settings, read = FOLDERS[name]
    count = 0
    for where, value in mutations(settings, original(name)):
        folder = written(name, where, value, tmp_path / "model")
        with pytest.raises((ValueError, FileNotFoundError)) as refused:
            read(folder)
            pytest.fail(f"{name}: {'.'.join(where)} = {value!r} was accepted")
        said = str(refused.value)
        assert str(folder) in said and "\n" not in said, (where, value, said)
        count += 1
    assert count > 20


@pytest.mark.parametrize("name", FOLDERS)
def test_sizes_that_the_weights_do_not_have_are_refused(name, tmp_path) -> None:
    """Some neighbours of a number are legal (heads, steps): whatever is refused names the folder."""
    settings, read = FOLDERS[name]
    for where, number in numbers(original(name)):
        for value in (0, number + 1, 2 * number, 1000 * number):
            folder = written(name, where, value, tmp_path / "model")
            try:
                read(folder)
            except ValueError as error:
                assert str(folder) in str(error), (where, value, str(error))


def numbers(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Every whole number in a config, also those in lists."""
    if type(content) is int:
        yield path, content
    elif isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from numbers(value, (*path, key))


def test_bundled_folders_are_what_their_settings_say() -> None:
    assert isinstance(base("maskgit-scenes"), Pipeline)
    assert {name for name in FOLDERS if not (WEIGHTS / name / "config.json").is_file()} == set()
