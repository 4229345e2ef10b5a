"""What messages tell users to run exists: commands, recipes and files."""

import re
from pathlib import Path

import pytest

from swiftmask.cli import COMMANDS, main
from swiftmask.cli.measure import METHODS, own
from swiftmask.registry import bundled_names, recipe_names, recipe_purpose

ROOT = Path(__file__).parents[2]
SOURCE = {path: path.read_text() for path in sorted((ROOT / "src").rglob("*.py"))}


def _found(pattern: str) -> list[tuple[str, str]]:
    return [(path.name, found) for path, text in SOURCE.items() for found in re.findall(pattern, text)]


def test_every_command_that_is_named_exists() -> None:
    named = _found(r"[`(]swiftmask ([a-z][a-z-]*(?: (?:quality|speed|report|emoji)(?!-))?)\b")
    assert len(named) > 30
    groups = {name.split()[0] for name in COMMANDS}
    unknown = [(file, name) for file, name in named if name not in COMMANDS and name not in groups]
    assert not unknown


def test_every_recipe_that_is_named_exists() -> None:
    named = _found(r"\btrain ((?:dimoo|mar|marval|maskgit|meissonic|scenes|image)-[a-z-]+)")
    named += _found(r"trained_by=\"([^\"{]+)\"")
    assert len(named) > 10
    assert not [(file, name) for file, name in named if name not in recipe_names()]


def test_every_file_of_the_repository_that_is_named_exists() -> None:
    named = _found(r"\b((?:docs|benchmarks)/[\w/.-]+\.(?:md|py))\b")
    assert len(named) > 10
    assert not [(file, name) for file, name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("method", METHODS)
def test_no_recipe_is_invented_for_a_missing_accelerator(method: str) -> None:
    for model in ("runs/some/model", *bundled_names("model")):
        try:
            own(model, "auto", method)
        except ValueError as error:
            assert f"{model} has no" in str(error)
            assert set(re.findall(r"train ([\w-]+)\)", str(error))) <= set(recipe_names())


def test_train_without_a_recipe_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name in recipe_names():
        assert name in printed
        assert len(recipe_purpose(name)) > 20
