"""Finding the cases of a folder, running each on its own, and comparing tensors."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from swiftmask.core.reading import DAMAGES, some
from swiftmask.core.settings import first_line, read_json

RELATIVE_TOLERANCE = 1e-5
"""Largest error of a float tensor, as a share of the reference's largest value."""

MANIFESTS = "manifests"


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison. `error` is the largest absolute error, or for exact ones the number of differences."""

    name: str
    error: float | None
    tolerance: float
    ok: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """A golden file: its config, and its tensors by group ("state", "in", "out", "base")."""

    name: str
    folder: Path
    content: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def config(self) -> Mapping[str, Any]:
        config = self.content.get("config", self.content)
        if not isinstance(config, Mapping):
            raise ValueError(f"{self.name}.json: expected an object under config")
        return config

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors `prefix.*`, without the prefix."""
        start = f"{prefix}."
        return {
            key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What came of one case."""

    name: str
    status: Literal["passed", "failed"]
    checks: list[Check] = field(default_factory=list)
    message: str = ""


def verify_folder(
    folder: str | Path,
    *,
    only: str | None = None,
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> list[Report]:
    """Every case of the folder, or those whose names begin with `only` (with or without "manifests/").

    A case that cannot be read or run fails with a message; the others still run.

    Errors: FileNotFoundError if there is no such folder; ValueError if it has no cases, or none is selected.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    names = case_names(folder)
    if not any(_is_case(folder, name) for name in names):
        found = f", got {some(names)}" if names else ""
        raise ValueError(
            f"{folder} holds no cases: expected KIND.json with KIND.safetensors (KIND is {kinds()[0]}, "
            f"{kinds()[1]} and so on), or manifests/NAME.json{found}"
        )
    chosen = [
        name for name in names if only is None or name.startswith(only) or _short(name).startswith(only)
    ]
    if not chosen:
        raise ValueError(f"no case begins with {only!r}: there is {', '.join(names)}")
    reports = []
    for name in chosen:
        reports.append(_report(folder, name))
        on_case(len(reports), len(chosen))
    return reports


def case_names(folder: Path) -> list[str]:
    """Names of the cases, without suffix; a file whose partner is missing counts."""
    cases = {path.stem for suffix in ("*.json", "*.safetensors", "*.npz") for path in folder.glob(suffix)}
    manifests = {f"{MANIFESTS}/{path.stem}" for path in (folder / MANIFESTS).glob("*.json")}
    return sorted(cases) + sorted(manifests)


def _is_case(folder: Path, name: str) -> bool:
    """Whether a file's name or its own `name` begins with a kind; a damaged one is told by its name."""
    if name.startswith(f"{MANIFESTS}/") or kind_of(name, {}):
        return True
    try:
        return kind_of(name, _read_content(folder, name)) is not None
    except (ValueError, OSError, RecursionError):
        return False


def kinds() -> list[str]:
    """The kinds that can be verified."""
    return sorted(module.name for module in iter_modules([str(Path(__file__).parent / "kinds")]))


def kind_of(name: str, content: Mapping[str, Any]) -> str | None:
    """The longest kind the name begins with; else the one its own `name` begins with."""
    for text in (name, str(content.get("name", ""))):
        found = [kind for kind in kinds() if text.startswith(kind)]
        if found:
            return max(found, key=len)
    return None


def read_case(folder: Path, name: str) -> Case:
    """Errors: FileNotFoundError or ValueError naming the missing or damaged file."""
    content = _read_content(folder, name)
    path, arrays = folder / f"{name}.safetensors", folder / f"{name}.npz"
    if arrays.exists():
        tensors = _read_arrays(arrays)
    elif path.exists():
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path.name} is damaged or truncated ({first_line(error)})") from error
    else:
        tensors = {}
        if "tensors" in content and not name.startswith(f"{MANIFESTS}/"):
            raise FileNotFoundError(f"{path.name} is missing beside {name}.json")
    return Case(name, folder, content, tensors)


def compare(outputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[Check]:
    """Our outputs beside the recorded `out.*`, by name: floats within the tolerance, the rest exactly."""
    if not expected:
        return [Check("out", None, 0.0, False, "the file records no outputs")]
    return [
        _compared(key, outputs[key], value)
        if key in outputs
        else Check(key, None, 0.0, False, "nothing here computes this output")
        for key, value in expected.items()
    ]


def exactly(name: str, ours: Iterable[object], theirs: Iterable[object], what: str = "") -> Check:
    """A check that two sequences are equal; the error is the number of places where they differ."""
    ours, theirs = list(ours), list(theirs)
    differ = sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
    return Check(name, float(differ), 0.0, differ == 0, what)


def _compared(name: str, ours: Tensor, theirs: Tensor) -> Check:
    if ours.shape != theirs.shape:
        return Check(name, None, 0.0, False, f"expected shape {tuple(theirs.shape)}, got {tuple(ours.shape)}")
    if not theirs.is_floating_point():
        differ = int((ours != theirs).sum())
        return Check(
            name, float(differ), 0.0, differ == 0, f"{differ} of {theirs.numel()} differ" if differ else ""
        )
    if theirs.numel() == 0:
        return Check(name, 0.0, 0.0, True)
    error = float((ours.double() - theirs.double()).abs().max())
    tolerance = RELATIVE_TOLERANCE * float(theirs.double().abs().max())
    return Check(name, error, tolerance, error <= tolerance)  # NaN is never within it


def _report(folder: Path, name: str) -> Report:
    try:
        content = _read_content(folder, name)
        kind = MANIFESTS if name.startswith(f"{MANIFESTS}/") else kind_of(name, content)
        if kind is None:
            return Report(name, "failed", message=f"unknown kind: there is {', '.join(kinds())}")
        module = "verify.manifests" if kind == MANIFESTS else f"verify.kinds.{kind}"
        with torch.no_grad():
            checks = import_module(module).check(read_case(folder, name))
    except Exception as error:  # whatever a foreign file does, the other cases still run
        message = f"missing {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        return Report(name, "failed", message=" ".join(message.split()))
    return Report(name, "passed" if checks and all(check.ok for check in checks) else "failed", checks)


def _short(name: str) -> str:
    return name.removeprefix(f"{MANIFESTS}/")


def _read_content(folder: Path, name: str) -> dict[str, Any]:
    """The case's JSON; an `.npz` may stand alone."""
    path = folder / f"{name}.json"
    return {} if not path.exists() and (folder / f"{name}.npz").exists() else _read_json(path)


def _read_arrays(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}
    except DAMAGES as error:
        raise ValueError(f"{path.name} is damaged or truncated ({first_line(error)})") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is missing")
    return read_json(path)


def sibling_names(case: Case, kind: str) -> list[str]:
    """Cases of another kind that `case` builds on, likeliest first.

    Its config names them in words under `base`; a case with a suffix of its own ("..._generate_b") may mean
    the siblings with the same suffix.
    """
    named = re.findall(rf"{kind}[\w.-]*", str(case.config.get("base", "")))
    own_kind = kind_of(case.name, case.content) or case.name
    suffix = case.name.removeprefix(own_kind) if case.name.startswith(own_kind) else ""
    candidates = [f"{kind}{suffix}", *(name.rstrip(".") for name in named), kind]
    if any(name != kind for name in named):
        candidates = [*(name.rstrip(".") for name in named), *candidates]
    return list(dict.fromkeys(name for name in candidates if name))
