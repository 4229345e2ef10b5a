"""Wrong values by type: of options, and of settings of recipes.

Whether a number is legal, the table of ranges says; what no rule can decide is named here, with the reason.
"""

import math
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from swiftmask.core.ranges import Range, has_numbers, range_of

SURROGATE = "a\udcffb"
"""A name that is no UTF-8, as Python gives it."""

WRONG_NAMES = ("", "nonsense", "a binary file", SURROGATE)
"""No model, accelerator, class, budget, device or dtype."""

WRONG_FILES = ("nowhere", "a binary file", "an empty folder", "another folder", SURROGATE)
WRONG_OUTPUTS = ("an empty file", "an empty file/below", "x" * 5000)
"""Where nothing can be written."""

OUTPUTS = {"out": "is written", "save_statistics": "is written"}
"""Paths that need not exist."""

UNDECIDED = {
    "bench only": "chooses rows by the series they end up in",
    "generate prompts": "refused beside classes, before it is read (tests/data/test_prompts.py)",
    "generate compile": "an empty mode is none",
    "bench speed compile": "an empty mode is none",
    "serve compile": "an empty mode is none",
    "generate negative_prompt": "refused for a model of classes, before it is read",
}
"""Options whose wrong values no rule here can tell, with the reason."""

FREE_TEXT = {
    "prompt": "any text is a prompt",
    "negative_prompt": "any text is a prompt",
    "only": "begins names of cases, or names a series of rows; none need begin so",
}
"""Text that may be anything but a lone surrogate."""


def wrong_values(owner: type, field: str, annotation: Any) -> Iterator[str]:
    """What an option, or a setting, of this type must not be."""
    kinds = set(flattened(annotation))
    if has_numbers(annotation):
        yield from outside(range_of(owner, field), whole=float not in kinds)
    elif bool in kinds:
        yield from ("maybe", "2")
    elif str in kinds:
        yield from (SURROGATE,) if field in FREE_TEXT else WRONG_NAMES
    elif any(isinstance(kind, str) for kind in kinds):  # choices
        yield from ("nonsense", SURROGATE)
    else:
        files = WRONG_OUTPUTS if field in OUTPUTS else WRONG_FILES
        replaced = field in OUTPUTS and getattr(owner, "out_is_file", False)
        yield from (file for file in files if not (replaced and file == "an empty file"))


def outside(allowed: Range, *, whole: bool) -> Iterator[str]:
    """Numbers that are out of a range, and what is no number."""
    ends = {allowed.low - 1, 10 * allowed.high + 1}
    ends |= {allowed.low} if allowed.above else set()
    ends |= {allowed.high} if allowed.below else set()
    for number in sorted(ends):
        if not allowed.holds(number):
            yield str(int(number)) if whole else str(number)
    yield from (str(math.floor(allowed.low) + 0.5), "x") if whole else ("nan", "inf", "x")


def flattened(annotation: Any) -> Iterator[Any]:
    """The types that a value may have, and the values of a Literal."""
    if get_origin(annotation) in (Annotated, Union, UnionType, tuple, Literal):
        for inner in get_args(annotation):
            yield from flattened(inner)
    else:
        yield annotation
