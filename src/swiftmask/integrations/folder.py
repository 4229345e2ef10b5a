"""A whole pipeline as one folder: the base model, what accelerates it, and its settings.

    pipeline.json    steps, sampling, caching and placement of the full steps
    base/            the model, as its `save_pretrained` writes it
    shortcut/        if there is one

The base holds the weights that run: those that Speed-RL tuned, and MARVAL's head in place of the teacher's.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from swiftmask.api import CACHINGS, accelerate, dtype_named, load
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.settings import read_json, read_settings
from swiftmask.core.writing import write_json
from swiftmask.methods.marval import Student
from swiftmask.methods.shortcut import ShortcutFeatures, write_shortcut
from swiftmask.pipeline import Pipeline

SETTINGS = "pipeline.json"
_BASE, _SHORTCUT = "base", "shortcut"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedStudent:
    """What makes the base a MARVAL student.

    Attributes:
        timestep: that its head is called at.
        own: names of the parameters that are not its teacher's.
    """

    timestep: int
    own: tuple[str, ...]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Contents of `pipeline.json`.

    Attributes:
        name: what to call the pipeline.
        dtype: of its weights.
        steps, sampling, full_steps, full_steps_by_default: as `Pipeline` has them.
        student: None for a model with a head of its own.
        shortcut: whether there is one in the folder.
        caching: a name that `accelerate(caching=...)` takes.
    """

    name: str
    dtype: str
    steps: int
    sampling: SamplingOptions
    student: SavedStudent | None = None
    shortcut: bool = False
    caching: str | None = None
    full_steps: int | tuple[int, ...] | None = None
    full_steps_by_default: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def write_pipeline(folder: str | Path, pipeline: Pipeline) -> None:
    """Write what `read_pipeline` reads; `pipeline.json` comes last, so that a folder with one is complete.

    Errors: ValueError for a feature function that has no folder and no name.
    """
    folder, model, features_fn = Path(folder), pipeline.model, pipeline.features_fn
    shortcut = features_fn.shortcut if isinstance(features_fn, ShortcutFeatures) else None
    caching = None if features_fn is None or shortcut is not None else _caching_name(pipeline)
    (folder / SETTINGS).unlink(missing_ok=True)
    base, student = model, None
    if isinstance(model, Student):
        base, student = model.model, SavedStudent(timestep=model.timestep, own=tuple(sorted(model.own)))
    writable: Any = base
    writable.save_pretrained(folder / _BASE, provenance=_provenance(pipeline), dtype=pipeline.dtype)
    if shortcut is not None:
        made_for = {"saved_from": pipeline.name}
        write_shortcut(
            folder / _SHORTCUT, shortcut, base=model.spec, provenance=made_for, dtype=pipeline.dtype
        )
    settings = Saved(
        name=pipeline.name,
        dtype=str(pipeline.dtype).removeprefix("torch."),
        steps=pipeline.steps,
        sampling=pipeline.sampling,
        student=student,
        shortcut=shortcut is not None,
        caching=caching,
        full_steps=pipeline.full_steps,
        full_steps_by_default=pipeline.full_steps_by_default,
    )
    write_json(folder / SETTINGS, asdict(settings))


def read_pipeline(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> Pipeline:
    """The pipeline that `write_pipeline` wrote.

    Args:
        dtype: of the weights; None takes what they were saved in.

    Errors: FileNotFoundError; ValueError for a damaged folder.
    """
    folder = Path(folder)
    expected = "expected the folder of a saved pipeline"
    saved = read_settings(Saved, folder / SETTINGS, expected=expected)
    chosen = dtype_named(saved.dtype) if dtype is None else dtype
    pipeline = load(folder / _BASE, dtype=chosen, device=device)
    if saved.student is not None:
        teacher: Any = pipeline.model
        student = Student(teacher, saved.student.own, timestep=saved.student.timestep)
        pipeline = accelerate(pipeline, marval=student)
    if saved.shortcut:
        pipeline = accelerate(pipeline, shortcut=folder / _SHORTCUT)
    elif saved.caching is not None:
        pipeline = accelerate(pipeline, caching=saved.caching)
    return replace(
        pipeline,
        name=saved.name,
        steps=saved.steps,
        sampling=saved.sampling,
        full_steps=saved.full_steps,
        full_steps_by_default=saved.full_steps_by_default,
        _flops={},
    )


def _caching_name(pipeline: Pipeline) -> str:
    """Errors: ValueError for one that none of the names gives again."""
    features_fn = pipeline.features_fn
    assert features_fn is not None
    for name, make in CACHINGS.items():
        if not name.startswith(features_fn.name):
            continue
        made = make(pipeline.model)
        if (type(made), made.settings) == (type(features_fn), features_fn.settings):
            return name
    raise ValueError(
        f"a feature function {features_fn.name!r} with settings {features_fn.settings} cannot be saved: "
        f"expected a shortcut, or one of {', '.join(CACHINGS)} as accelerate makes it"
    )


def _provenance(pipeline: Pipeline) -> dict[str, Any]:
    """Where the base came from, if its folder says so."""
    path = None if pipeline.folder is None else pipeline.folder / "provenance.json"
    return read_json(path) if path is not None and path.is_file() else {}
