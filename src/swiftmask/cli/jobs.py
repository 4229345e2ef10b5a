"""What `swiftmask generate` draws: classes or prompts with their seeds, and the image they start from."""

import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftmask.cli.progress import note

if TYPE_CHECKING:
    from swiftmask.data.images import Decoding
    from swiftmask.data.images.inpainting import StartImage
    from swiftmask.models.meissonic import Prompt
    from swiftmask.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Job:
    """One image.

    Attributes:
        what: class or prompt.
        negative: what a prompt's image is not to show.
        line: of the file of prompts, from 1; None without one.
    """

    what: str
    seed: int
    negative: str = ""
    line: int | None = field(default=None, compare=False)

    @property
    def file_name(self) -> str:
        """Readable, and another one for every other job."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.what.lower()).strip("-")[:60]
        if not slug:  # no Latin letter or digit: the digits alone tell such prompts apart
            whole = "\n".join((self.what, self.negative))
            return f"picture-{hashlib.sha256(whole.encode()).hexdigest()[:16]}-{self.seed}.png"
        if self.negative or slug.replace("-", " ") != self.what:  # the slug does not say it all
            whole = "\n".join(text for text in (self.what, self.negative) if text)
            slug = f"{slug}-{zlib.crc32(whole.encode()):08x}"
        return f"{slug}-{self.seed}.png"

    def facts(self) -> dict[str, object]:
        """What the image's settings and generate.json say of it."""
        negative = {"negative_prompt": self.negative} if self.negative else {}
        return {"what": self.what, "seed": self.seed, **negative}


def class_jobs(classes: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Every class with every seed, once."""
    return _once(Job(what.strip(), seed) for what in classes for seed in seeds)


def prompt_jobs(
    prompts: Sequence[str],
    file: Path | None,
    negatives: Sequence[str],
    seeds: Sequence[int],
    *,
    option: str = "",
) -> list[Job]:
    """Every prompt, given or in a file, with every seed, once.

    Args:
        negatives: none, one for all, or one for each prompt; what the file says of a prompt goes before them.
        seeds: of each prompt; where the file gives a prompt's first seed, as many from there on.
        option: that gave the seeds, --seed or --seeds; empty for neither.

    Errors: ValueError for an empty prompt, another number of negatives, or an option beside seeds of the file
    (--seed is for the prompts without one), and those of `read_prompts`.
    """
    from swiftmask.data.prompts import ListedPrompt, read_prompts, require_text

    given = [ListedPrompt(require_text(text).strip()) for text in prompts]
    listed = given + ([] if file is None else read_prompts(file))
    if not all(entry.text for entry in listed):
        raise ValueError("empty --prompt: say what to generate")
    seeded = [entry.seed is not None for entry in listed]
    if (option == "--seeds" and any(seeded)) or (option == "--seed" and all(seeded)):
        raise ValueError(f"{option} beside the column seed of {file}: leave out one of them")
    if len(negatives) not in (0, 1, len(listed)):
        raise ValueError(
            f"expected one --negative-prompt for all, or one for each of {len(listed)} prompts, got "
            f"{len(negatives)}"
        )
    wide = list(map(require_text, negatives)) or [""]
    wide = wide * len(listed) if len(wide) == 1 else wide
    return _once(
        Job(entry.text, seed, (other if entry.negative is None else entry.negative).strip(), entry.line)
        for entry, other in zip(listed, wide, strict=True)
        for seed in (seeds if entry.seed is None else range(entry.seed, entry.seed + len(seeds)))
    )


def asked_of(jobs: Sequence[Job]) -> "list[str] | list[Prompt]":
    """The jobs as a model's `encode` takes them."""
    texts = [job.what for job in jobs]
    if not any(job.negative for job in jobs):
        return texts
    from swiftmask.models.meissonic import with_negative

    return with_negative(texts, [job.negative for job in jobs])


def check_jobs(pipeline: "Pipeline", jobs: Sequence[Job], file: Path | None = None) -> None:
    """Errors: ValueError naming all that the model cannot read, such as unknown classes or too long prompts,
    and for two jobs that would be written to one file.

    Args:
        file: of the prompts, whose lines are named.
    """
    from swiftmask.core.arguments import chosen_seeds
    from swiftmask.data.prompts import name_all
    from swiftmask.models.meissonic import Meissonic

    model = pipeline.model
    chosen_seeds([job.seed for job in jobs], len(jobs))
    if any(job.negative for job in jobs) and not isinstance(model, Meissonic):
        raise ValueError(f"{pipeline.name} takes no negative prompt: leave it out, or use a meissonic model")
    check: Any = model.check_prompts if isinstance(model, Meissonic) else model.encode
    unique: dict[Any, int | None] = {}
    for asked, job in zip(asked_of(jobs), jobs, strict=True):
        unique.setdefault(asked, job.line)
    if _complaint(check, list(unique)):
        problems = [
            (f"number {i}" if line is None else f"line {line}", said)
            for i, (asked, line) in enumerate(unique.items(), 1)
            if (said := _complaint(check, [asked]))
        ]
        if len(problems) == 1:
            place, said = problems[0]
            raise ValueError(f"{file}, {place}: {said}" if place.startswith("line") else said)
        source = "" if file is None else f"{file}: "
        raise ValueError(
            f"{source}{len(problems)} of {len(unique)} cannot be generated: {name_all(problems)}"
        )
    _require_own_files(jobs)


def _complaint(check: Callable[[list[Any]], object], what: "list[str] | list[str | Prompt]") -> str:
    """What is wrong with the first of some classes or prompts that is wrong, or nothing."""
    try:
        check(what)
    except ValueError as error:
        return str(error)
    return ""


def _require_own_files(jobs: Sequence[Job]) -> None:
    first: dict[str, Job] = {}
    for job in jobs:
        if (other := first.setdefault(job.file_name, job)) != job:
            raise ValueError(
                f"{other.what!r} and {job.what!r} would both be written to {job.file_name}: generate one "
                "of them into another folder"
            )


def truncated(pipeline: "Pipeline", jobs: Sequence[Job]) -> list[Job]:
    """The jobs with prompts cut to what the model reads; says how many were."""
    from swiftmask.models.meissonic import Meissonic

    if not isinstance(pipeline.model, Meissonic):
        return list(jobs)
    cut = pipeline.model.truncated_prompt
    shorter = [replace(job, what=cut(job.what), negative=cut(job.negative)) for job in jobs]
    if num_cut := sum(old != new for old, new in zip(jobs, shorter, strict=True)):
        note(f"{num_cut} of {len(jobs)} images have prompts cut to the model's length (--truncate)")
    return shorter


def start_of(pipeline: "Pipeline", image: Path, mask: Path | None, decoding: "Decoding") -> "StartImage":
    """What every image starts from; says what had to be converted.

    Errors: those of `open_image` and `Pipeline.start`.
    """
    from swiftmask.data.images.decode import counted, open_image, said, to_rgb

    opened = to_rgb(open_image(image), decoding)
    start = pipeline.start(opened.image, None if mask is None else open_image(mask))
    for line in said(counted([opened.changes]), 1, decoding):
        note(f"{image}: {line}")
    return start


def file_mark(path: Path) -> str:
    """A file as images remember it: changed contents count as another file."""
    from swiftmask.stamps import content_mark

    return content_mark(path.name, path.expanduser().read_bytes())


def _once(jobs: Iterable[Job]) -> list[Job]:
    return list(dict.fromkeys(jobs))
