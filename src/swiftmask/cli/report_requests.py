"""What the pictures of a report are asked for: classes or prompts, of Scenes or the user's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftmask.cli import jobs

if TYPE_CHECKING:
    from swiftmask.core.protocol import MaskedGenerator
    from swiftmask.evaluate.quality import Row
    from swiftmask.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Requests:
    """What images are asked for.

    Attributes:
        entries: class labels, or prompts.
        names: the same, for people.
        first_seeds: of each prompt's first image, where its file says; empty, or one for each entry.
    """

    entries: tuple[Any, ...]
    names: tuple[str, ...]
    first_seeds: tuple[int | None, ...] = ()

    def seed(self, index: int, otherwise: int) -> int:
        """The first seed of an entry, where its file says one."""
        first = self.first_seeds[index] if self.first_seeds else None
        return otherwise if first is None else first

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
    known = model.spec.num_classes
    assert known is not None
    if count is not None and count > known:
        raise ValueError(f"--classes {count}: this {model.spec.name} knows {known}")
    names = tuple(getattr(model, "class_names", ())) or tuple(f"class {i}" for i in range(known))
    return Requests(tuple(range(known))[:count], names[:count])


def prompt_requests(path: Path, pipeline: "Pipeline", *, truncate: bool = False) -> Requests:
    """The prompts of a file, with their negative prompts and seeds.

    Args:
        truncate: whether prompts that are too long for the model are cut.

    Errors: see `read_prompts`; ValueError naming what the model cannot read.
    """
    from swiftmask.data.prompts import read_prompts

    listed = read_prompts(path)
    asked = [jobs.Job(prompt.text, 0, (prompt.negative or "").strip(), prompt.line) for prompt in listed]
    if truncate:
        asked = jobs.truncated(pipeline, asked)
    jobs.check_jobs(pipeline, asked, path)
    names = tuple(job.what for job in asked)
    return Requests(tuple(jobs.asked_of(asked)), names, tuple(prompt.seed for prompt in listed))
