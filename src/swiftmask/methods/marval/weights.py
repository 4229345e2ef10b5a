"""A student on disk: the parameters that are its own, and marks of the teacher that the others come from.

Loading needs the teacher: codec and, for a student of the head alone, backbone are its. Sizes tell most
wrong teachers; for two models of one size the config keeps the largest magnitude of a few borrowed
parameters, which survives half precision but not another training.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from swiftmask.core.files import weights_like, write_folder
from swiftmask.core.protocol import BaseModel, DenoisingModel
from swiftmask.core.ranges import RANGES, check, check_fields
from swiftmask.core.reading import State, read_tensors, some
from swiftmask.core.settings import read_json, settings_of
from swiftmask.methods.marval.student import Student, as_module, make_student

_NUM_MARKS = 8
_MARK_TOLERANCE = 0.01
"""Bfloat16 rounds by up to 0.4 %."""


def write_student(
    folder: str | Path,
    student: Student,
    *,
    provenance: Mapping[str, object],
    base_name: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `config.json`, `model.safetensors` and `provenance.json`, each whole or not at all.

    Args:
        base_name: what to call the teacher ("mar-scenes"); None is its family.
        dtype: of the weights on disk (they are read in the teacher's).
    """
    parameters = dict(as_module(student.model).named_parameters())
    state = {name: p.detach() for name, p in parameters.items() if name in student.own}
    borrowed = {name: p.detach() for name, p in parameters.items() if name not in student.own}
    settings = Settings(
        method="marval",
        timestep=student.timestep,
        num_own=len(state),
        base_model=BaseModel.of(student.spec, base_name),
        base_marks={name: _mark(borrowed[name]) for name in _evenly(list(borrowed))},
    )
    write_folder(folder, state, config=asdict(settings), provenance=provenance, dtype=dtype)


def read_student(folder: str | Path, teacher: DenoisingModel) -> Student:
    """A student in eval mode, on the teacher's device and in its dtype; the teacher is frozen and not copied
    but for what is the student's own.

    Errors: FileNotFoundError; ValueError for a damaged file or another teacher.
    """
    folder = Path(folder)
    settings = _read_config(folder / "config.json")
    path = folder / "model.safetensors"
    state = read_tensors(path)
    _check_teacher(folder, settings, state, teacher)
    if len(state) != settings.num_own:
        raise ValueError(
            f"{path} holds {len(state)} parameters, and its config.json says {settings.num_own}: the student "
            "is incomplete, or of other files; copy both again"
        )
    student = make_student(teacher, state, timestep=settings.timestep)
    with torch.no_grad():
        for name, parameter in as_module(student.model).named_parameters():
            if name in state:
                place = f"{path}: {name}"
                parameter.copy_(weights_like(parameter, state[name], source=place))
    return student


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Config of a MARVAL student.

    Attributes:
        num_own: how many parameters are its own, and in its file.
        base_marks: largest magnitudes of some parameters of the teacher.
    """

    method: Literal["marval"]
    timestep: int
    num_own: int
    base_model: BaseModel
    base_marks: dict[str, float]

    def __post_init__(self) -> None:
        check_fields(self)
        for name, mark in self.base_marks.items():
            check(f"base_marks of {name}", mark, RANGES["base_marks"])


def _read_config(path: Path) -> Settings:
    content = read_json(path, expected="expected the folder of a MARVAL student")
    if "model" in content:
        raise ValueError(f"{path.parent} holds a {content['model']} model, no MARVAL student")
    return settings_of(Settings, content, source=str(path))


def _check_teacher(folder: Path, settings: Settings, state: State, teacher: DenoisingModel) -> None:
    base, marks = settings.base_model, settings.base_marks
    parameters = dict(as_module(teacher).named_parameters())
    whole = [name for name in marks if name in state]
    if whole:
        raise ValueError(
            f"{folder / 'model.safetensors'} holds a whole model: it has {some(whole)}, which the student "
            f"takes from {base.name}"
        )
    differ = base.differences(teacher.spec) or _misfits(state, parameters) or _other_marks(marks, parameters)
    if not differ and all(
        torch.equal(parameters[key], value.to(parameters[key])) for key, value in state.items()
    ):
        raise ValueError(
            f"{folder} holds the weights of {base.name} itself: expected a student distilled from them"
        )
    if differ:
        raise ValueError(
            f"the student {folder} was made from {base.name}, and this teacher is another model: "
            f"{some(differ)}; give the one it was made from"
        )


def _misfits(state: State, parameters: State) -> list[str]:
    """Weights of the student that have no place in the teacher."""
    strange = [f"no parameter {name}" for name in state if name not in parameters]
    return strange + [
        f"{name} {tuple(value.shape)} against {tuple(parameters[name].shape)}"
        for name, value in state.items()
        if name in parameters and parameters[name].shape != value.shape
    ]


def _other_marks(marks: Mapping[str, float], parameters: State) -> list[str]:
    found = {name: _mark(parameters[name]) if name in parameters else math.nan for name in marks}
    return [
        f"largest weight of {name} {mark:.4g} against {found[name]:.4g}"
        for name, mark in marks.items()
        if not math.isclose(found[name], mark, rel_tol=_MARK_TOLERANCE)
    ]


def _mark(parameter: Tensor) -> float:
    return float(parameter.detach().float().abs().max())


def _evenly(names: list[str]) -> list[str]:
    """A few of them, from first to last."""
    stride = max(1, len(names) // _NUM_MARKS)
    return names[::stride][:_NUM_MARKS]
