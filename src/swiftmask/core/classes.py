"""Classes by number or by name."""

from collections.abc import Sequence


def class_number(entry: str | int, num_classes: int, names: Sequence[str]) -> int:
    """The class that a user means by "207", 207, or one of `names` (which may be empty).

    Errors: ValueError for a class that is not there.
    """
    text = str(entry).strip()
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < num_classes:
        return int(text)
    named = f" or a name such as {names[0]!r}" if names else ""
    raise ValueError(f"unknown class {entry!r}: give a number from 0 to {num_classes - 1}{named}")


def check_class_names(names: Sequence[str], num_classes: int) -> None:
    """Errors: ValueError unless there is one name for each class, or none at all."""
    if names and (len(names) != num_classes or len({*names}) < len(names)):
        raise ValueError(f"class_names must be {num_classes} different names, got {len(names)} ({names[:3]})")
