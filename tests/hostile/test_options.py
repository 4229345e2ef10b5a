"""Wrong values of every option of every command: exit code 2, one line that names it, nothing written.

Options are found from the commands, and their wrong values from their types and ranges. A network that runs,
or a server that listens, shows that a wrong value was accepted.
"""

import contextlib
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from swiftmask.cli import COMMANDS, main
from swiftmask.serve.listening import ListeningServer
from tests.cli.conftest import tiny_scenes
from tests.hostile.values import FREE_TEXT, OUTPUTS, UNDECIDED, wrong_values
from tests.released_layouts import write_maskgit

__all__ = ["tiny_scenes"]

MOST_SECONDS = 2.0
"""Of this process on a CPU, in a process that has loaded what it needs."""


class StartedError(BaseException):
    """The work that a refused command must not begin."""


@dataclass(frozen=True)
class Outcome:
    code: int | None
    said: str
    seconds: float


def ran(arguments: list[str]) -> Outcome:
    """A command in this process; no code where its work began."""
    said, printed = io.StringIO(), io.StringIO()
    began = time.process_time()
    code = None
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        try:
            main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        except StartedError:
            pass
    return Outcome(code, said.getvalue(), time.process_time() - began)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_scenes: Path) -> Path:
    """A working directory with a model, images, statistics, released files, and files of no kind."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "model").symlink_to(tiny_scenes)
    (folder / "model-shortcut").symlink_to(tiny_scenes.with_name("tiny-shortcut"))
    for name in ("pictures", "reference"):
        (folder / name).mkdir()
        for i in range(4):
            Image.new("RGB", (64, 64), (50 * i, 90, 0)).save(folder / name / f"{i}.png")
    write_maskgit(folder / "released")
    (folder / "golden").symlink_to(Path(__file__).parents[1] / "golden")
    (folder / "an empty file").write_bytes(b"")
    (folder / "a binary file").write_bytes(np.random.default_rng(0).bytes(4096))
    (folder / "a text").write_text("a red circle\n")
    (folder / "an empty folder").mkdir()
    (folder / "another folder").mkdir()
    (folder / "another folder" / "config.json").write_text(json.dumps({"model": "other"}))
    return folder


SOUND = {
    "generate": ["model", "0"],
    "train": ["scenes-reward"],
    "compare": [
        "pictures",
        "--reference",
        "reference",
        "--extractor",
        "scenes",
        "--nearest",
        "1",
        "--splits",
        "2",
    ],
    "nearest": ["pictures", "--reference", "reference", "--extractor", "scenes"],
    "bench": ["model"],
    "bench speed": ["model"],
    "tune": ["model", "--speedup", "2"],
    "convert": [
        "released/MaskGIT/MaskGIT_ImageNet_256.pth",
        "--codec",
        "released/VQGAN/last.ckpt",
        "--out",
        "n",
    ],
    "data emoji": ["--out", "new", "--source", "another folder"],
    "verify": ["golden"],
    "demo": ["--model", "model", "--shortcut", "model-shortcut"],
    "serve": ["model"],
    "studio": ["model"],
    "serve-reward": ["scenes-judge"],
    "models": [],
}
"""A command that would do its work."""


def options() -> list[Any]:
    return [option for option in _options() if option.id not in UNDECIDED]


def _options() -> Iterator[Any]:
    for name, command in COMMANDS.items():
        made = getattr(import_module(f"swiftmask.cli.{command.module}"), command.name)
        hints = get_type_hints(made, include_extras=True)
        inherited = {field.name for base in made.__mro__[1:] if is_dataclass(base) for field in fields(base)}
        for field in fields(made):
            if field.name in inherited:  # tried in the command that it is from
                continue
            if is_dataclass(inner := type(field.default)):  # options that several commands share
                for other, kind in get_type_hints(inner, include_extras=True).items():
                    yield pytest.param(name, inner, other, kind, id=f"{name} {other}")
            else:
                yield pytest.param(name, made, field.name, hints[field.name], id=f"{name} {field.name}")


@pytest.fixture
def barred(monkeypatch: pytest.MonkeyPatch) -> None:
    """No work begins."""

    def stop(*_: object, **__: object) -> None:
        raise StartedError

    monkeypatch.setattr(torch.nn.Module, "__call__", stop)
    monkeypatch.setattr(ListeningServer, "serve_forever", stop)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_sound_command_would_work(name: str, place: Path, barred: None, monkeypatch) -> None:
    """Else every wrong value would be refused for another reason."""
    monkeypatch.chdir(place)
    before = snapshot(place)
    if name in ("data emoji", "convert"):
        pytest.skip("writes, and runs no network")
    if name == "studio":
        pytest.importorskip("gradio", reason="the extra studio is not installed")
    outcome = ran([*name.split(), *SOUND[name]])
    assert outcome.code in (None, 0), outcome.said
    for path in sorted(set(snapshot(place)) - set(before), reverse=True):
        (place / path).rmdir() if (place / path).is_dir() else (place / path).unlink()


@pytest.mark.parametrize(("command", "made", "field", "annotation"), options())
def test_wrong_values(
    command, made, field, annotation, place: Path, barred: None, monkeypatch, count
) -> None:
    monkeypatch.chdir(place)
    wrong, cases = [], 0
    before = snapshot(place)
    for value in wrong_values(made, field, annotation):
        outcome = ran(arguments(command, field, annotation, value))
        cases += 1
        complaint = complaint_of(outcome, field, value)
        after = snapshot(place)
        if after != before:
            complaint = f"{complaint}; it wrote {sorted(set(after) - set(before))}"
            before = after
        if complaint:
            wrong.append(f"{value!r:.60}: {complaint}")
    count(cases)
    if wrong:
        pytest.fail(f"{len(wrong)} of {cases} wrong values:\n" + "\n".join(wrong), pytrace=False)


def arguments(command: str, field: str, annotation: Any, value: str) -> list[str]:
    """The sound command with one value in place of its own."""
    words, flag = list(SOUND[command]), f"--{field.replace('_', '-')}"
    if "Positional" in str(annotation):
        first = 1 if str(annotation).startswith("typing.Annotated[tuple") else 0
        words[first : first + 1] = [value]
    elif flag in words:
        words[words.index(flag) + 1] = value
    else:
        words = [*words, f"{flag}={value}"] if annotation is bool else [*words, flag, value]
    return [*command.split(), *words]


def complaint_of(outcome: Outcome, field: str, value: str) -> str:
    """What is wrong with how a wrong value was met; nothing if it was refused well."""
    lines = outcome.said.strip().splitlines()
    names = (field, field.replace("_", "-"), field.replace("_", " "), value or "''", repr(value)[1:-1])
    complaints = (
        (outcome.code is None, "accepted"),
        (outcome.code != 2, f"exit code {outcome.code}: {lines[:1]}"),
        (len(lines) != 1, f"{len(lines)} lines: {lines}"),
        ("Traceback" in outcome.said, "a traceback"),
        (not any(name in outcome.said for name in names), f"does not name it: {lines}"),
        (outcome.seconds > MOST_SECONDS, f"took {outcome.seconds:.1f} s"),
    )
    return next((text for wrong, text in complaints if wrong), "")


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below with its size and time, links not followed."""
    there = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        there[str(path.relative_to(folder))] = (0, 0) if path.is_dir() else (state.st_size, state.st_mtime_ns)
    return there


def test_tables_name_options_that_exist() -> None:
    known = {option.id for option in _options()}
    assert set(SOUND) == set(COMMANDS)
    assert set(UNDECIDED) <= known
    fields_known = {name.rpartition(" ")[2] for name in known}
    assert set(OUTPUTS) | set(FREE_TEXT) <= fields_known
