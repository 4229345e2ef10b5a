"""What the measuring commands share: a model's own accelerators, reports of other settings, printing."""

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from swiftmask.evaluate.summary import Origin, Report
    from swiftmask.pipeline import Pipeline

Caching = Literal["reuse", "extrapolation-1", "extrapolation-2", "ml-cache", "ml-cache-refreshed"]
"""Training-free accelerators."""


def baselines_of(pipeline: "Pipeline") -> tuple[Caching, ...]:
    """Those that a model can be accelerated with: ML-Cache needs one that recomputes single columns."""
    anywhere: tuple[Caching, ...] = ("reuse", "extrapolation-1", "extrapolation-2")
    if not hasattr(pipeline.model, "features_and_cache"):
        return anywhere
    return (*anywhere, "ml-cache", "ml-cache-refreshed")


METHODS = ("shortcut", "marval", "speed_rl")
"""Options that name weights which a model may have beside it."""


def own(model: str, chosen: str, method: str) -> str:
    """Where the weights of one of `METHODS` for a model are: as chosen, or for "auto" beside the model, as
    in `MODEL-speed-rl`.

    Errors: ValueError where "auto" finds nothing.
    """
    if chosen != "auto":
        return chosen
    beside = _beside(model, method)
    if beside is None:
        from swiftmask.registry import recipe_names

        what = method.replace("_", "-")
        name = Path(f"{model.rstrip('/')}-{what}").name
        trained = f", or train it (swiftmask train {name})" if name in recipe_names() else ""
        raise ValueError(f"{model} has no {what} of its own: name one, or its folder{trained}")
    return beside


def has_own(model: str, method: str) -> bool:
    """Whether "auto" finds one."""
    return _beside(model, method) is not None


def own_or_none(model: str, chosen: str, method: str) -> str:
    """As `own`, in a form that a preset can keep; "none" where that is chosen or "auto" finds nothing."""
    if chosen == "none" or (chosen == "auto" and not has_own(model, method)):
        return "none"
    source = own(model, chosen, method)
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _beside(model: str, method: str) -> str | None:
    from swiftmask.registry import bundled_names

    beside = Path(f"{model.rstrip('/')}-{method.replace('_', '-')}")
    return str(beside) if beside.is_dir() or beside.name in bundled_names() else None


def denoising_steps(given: Sequence[int]) -> int | tuple[int, int] | None:
    """--denoising-steps as the sampling option: none, one number, or the two ends of an annealed decode."""
    match tuple(given):
        case ():
            return None
        case (steps,):
            return steps
        case (first, last):
            return first, last
    raise ValueError(f"--denoising-steps takes one number or two, got {len(given)}")


def has_diffusion_head(pipeline: "Pipeline") -> bool:
    return hasattr(pipeline.model, "denoise")


def check_budget(steps: int, full_steps: int) -> None:
    """Errors: ValueError unless 1 <= full_steps <= steps."""
    if not 1 <= full_steps <= steps:
        raise ValueError(f"full steps must be between 1 and the number of steps ({steps}), got {full_steps}")


def is_guided(pipeline: "Pipeline") -> bool:
    """Whether its own sampling runs a null branch beside the conditional one."""
    return any(step.guidance != 1.0 for step in pipeline.schedule())


def fingerprint(pipeline: "Pipeline", schedule: object = None) -> str:
    """Sixteen hex digits of weights and settings of model and accelerator, and of the schedule."""
    from swiftmask.evaluate.fingerprints import exact_fingerprint

    accelerator = None if pipeline.features_fn is None else pipeline.features_fn.name
    weights = exact_fingerprint(pipeline.model, pipeline.features_fn)
    facts = repr((pipeline.model.spec, accelerator, schedule, weights))
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def file_name(base: "Pipeline") -> str:
    """A model's name as part of a file's."""
    return base.name.replace("/", "--")


def refuse_another_report(path: Path, model: str, command: str) -> None:
    """Before anything is measured. Errors: ValueError if `path` is the report of another model, of other
    settings or of another command.
    """
    from swiftmask.core.settings import read_json

    if not path.exists():
        return
    found = read_json(path, expected="expected a report")
    if found.get("model") != model:
        raise ValueError(
            f"{path} is the report of another model ({found.get('model')}, this is {model}): choose "
            "another --out, or --overwrite to replace it"
        )
    if _what_is_measured(str(found.get("command"))) != _what_is_measured(command):
        raise ValueError(
            f"{path.parent} holds the report of other settings ({found.get('command')}): choose another "
            "--out, or --overwrite to replace it"
        )


def _what_is_measured(command: str) -> list[str]:
    """A command without the options that leave the report as it is."""
    words = shlex.split(command)
    own = [place for place, word in enumerate(words) if word in ("--out", "--device", "--batch-size")]
    return [word for place, word in enumerate(words) if place not in own and place - 1 not in own]


_UNTOLD = ("overwrite", "json", "shown", "engine", "workers", "gpus_per_worker")
"""Options that change no number."""


def command_of(name: str, options: Any) -> str:
    """What to type for the same again: a command with the options that are not its defaults."""
    return shlex.join(["swiftmask", *name.split(), *map(str, _words(options))])


def _words(options: Any) -> list[object]:
    words: list[object] = []
    for field in fields(options):
        value = getattr(options, field.name)
        if is_dataclass(value):
            words += _words(value)
        elif field.default is MISSING:  # the first one goes without its name
            words += [f"--{field.name.replace('_', '-')}", value] if words else [value]
        elif value != field.default and field.name not in _UNTOLD:
            words.append(f"--{field.name.replace('_', '-')}")
            words += [] if value is True else value if isinstance(value, tuple) else [value]
    return words


def origin(model: str, command: str) -> "Origin":
    from swiftmask.evaluate.summary import Origin
    from swiftmask.recipes.provenance import commit, machine

    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return Origin(model=model, commit=commit(), date=date, machine=machine(), command=command)


def print_json(content: object) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def print_report(report: "Report") -> None:
    """The tables and their caption on stdout."""
    from swiftmask.evaluate.table import caption, groups, headings, table

    print_table(f"{report.model}: quality and cost", headings(report), table(report), caption(report))
    for group in groups(report):
        print_table(group, headings(report, group), table(report, group))


def print_table(
    title: str, headings: Sequence[str], cells: Sequence[Sequence[str]], caption: str = ""
) -> None:
    """A table on stdout; a file has room for all of it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console = console if console.is_terminal else Console(width=200)
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if index else "left", no_wrap=not index)
    for row in cells:
        shown.add_row(*row)
    console.print(shown)
    if caption:
        console.print(caption, highlight=False)
