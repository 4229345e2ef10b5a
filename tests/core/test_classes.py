import pytest

from swiftmask.core.classes import class_number

NAMES = ("goldfish", "hen", "0")


def test_classes_by_number_and_by_name() -> None:
    assert [class_number(entry, 3, NAMES) for entry in (2, "1", " hen ", "goldfish")] == [2, 1, 1, 0]
    assert class_number("0", 3, NAMES) == 2  # a name comes before a number
    assert class_number("7", 8, ()) == 7


@pytest.mark.parametrize(("names", "hint"), [((), "from 0 to 2$"), (NAMES, "or a name such as 'goldfish'$")])
@pytest.mark.parametrize("entry", [3, "3", "-1", "Hen", ""])
def test_classes_that_are_not_there(entry: str | int, names: tuple[str, ...], hint: str) -> None:
    with pytest.raises(ValueError, match=f"unknown class {entry!r}: give a number from 0 to 2"):
        class_number(entry, 3, names)
    with pytest.raises(ValueError, match=hint):
        class_number(entry, 3, names)
