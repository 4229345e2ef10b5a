"""Optional libraries: what is said where one is missing."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from swiftmask.core.optional import EXTRAS, library

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))


def _named(requirements: list[str]) -> set[str]:
    """Names of requirements, as they are imported."""
    return {re.split(r"[\[<>=~! ]", text, maxsplit=1)[0].replace("-", "_") for text in requirements}


def test_a_library_that_is_there() -> None:
    assert library("json", "the image") is json


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"^the image needs diffusers, .*: pip install 'swiftmask\[text\]'$"):
        library("diffusers", "the image")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\blibrary\(\"(\w+)\"", SOURCE)) | set(EXTRAS)))
def test_every_optional_library_is_installed_by_its_extra(name: str) -> None:
    if name not in EXTRAS:
        assert name in _named(PROJECT["dependencies"])
        return
    brought_by = {"tokenizers": "transformers"}.get(name, name)
    assert brought_by in _named(PROJECT["optional-dependencies"][EXTRAS[name]])


def test_every_extra_that_a_message_names_exists() -> None:
    named = set(re.findall(r"swiftmask\[(\w+)\]", SOURCE))
    assert {"text", "rl", "rewards"} <= named | set(EXTRAS.values())
    assert named <= set(PROJECT["optional-dependencies"])
