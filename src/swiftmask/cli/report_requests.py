"""What the pictures of a report are asked for: classes or prompts, of Scenes or the user's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swiftmask.core.protocol import MaskedGenerator
    from swiftmask.evaluate.quality import Row


@dataclass(frozen=True, slots=True)
class Requests:
    """What pictures are asked for.

    Attributes:
        entries: class labels, or prompts.
        names: the same, for people.
    """

    entries: tuple[Any, ...]
    names: tuple[str, ...]

    def shown(self, count: int) -> list[int]:
        """Indices of a mixed handful: neighbouring classes tend to look alike."""
        return [(7 * index + 4) % len(self.entries) for index in range(count)]


def scenes_requests(row: "Row", count: int) -> Requests:
    """What a study on Scenes asks of `count` pictures."""
    from swiftmask.data.scenes import CLASS_NAMES

    entries = tuple(dict.fromkeys(row.subjects.asked(0, count)))
    names = tuple(CLASS_NAMES[entry] if isinstance(entry, int) else entry for entry in entries)
    return Requests(entries, names)


def class_requests(model: "MaskedGenerator", count: int | None) -> Requests:
    """The first `count` classes of a model, or all. Errors: ValueError if it knows fewer."""
    known = num_classes(model)
    if count is not None and count > known:
        raise ValueError(f"--classes {count}: this {model.spec.name} knows {known}")
    names = tuple(getattr(model, "class_names", ())) or tuple(f"class {i}" for i in range(known))
    return Requests(tuple(range(known))[:count], names[:count])


def prompt_requests(path: Path) -> Requests:
    """The prompts of a file. Errors: see `read_prompts`."""
    from swiftmask.data.prompts import read_prompts

    prompts = tuple(prompt.text for prompt in read_prompts(path))
    return Requests(prompts, prompts)


def num_classes(model: "MaskedGenerator") -> int:
    """How many classes a model knows, by asking: it refuses the number that follows the last one."""
    known, unknown = 0, 1
    while _knows(model, unknown):
        known, unknown = unknown, 2 * unknown
    while unknown - known > 1:
        middle = (known + unknown) // 2
        known, unknown = (middle, unknown) if _knows(model, middle) else (known, middle)
    return unknown


def _knows(model: "MaskedGenerator", label: int) -> bool:
    try:
        model.encode([label])
    except ValueError:
        return False
    return True
