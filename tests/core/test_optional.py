"""Optional libraries: what is said where one is missing."""

import json
import sys

import pytest

from swiftmask.core.optional import library


def test_a_library_that_is_there() -> None:
    assert library("json", "the picture") is json


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"^the picture needs diffusers, .*: pip install diffusers$"):
        library("diffusers", "the picture")
