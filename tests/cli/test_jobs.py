"""Names of images, and jobs that are refused before anything is drawn."""

import re
from pathlib import Path

import pytest

from swiftmask.cli.jobs import Job, _require_own_files, prompt_jobs

RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(10)), *(f"lpt{i}" for i in range(10))}

HOSTILE = [
    "红色的圆", "красный круг", "🐈", "...", "-", "--out x", "../../etc/passwd", "a/b", "c:\\x", "con", "NUL",
    "com1", "", " ", "\n", "\0", "x" * 5000, "é", "ß" * 300, "$(rm)", "* ?", ".hidden", "-21a0dcb8",
    "a" * 59 + " b",
]  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("negative", ["", "红"])
def test_names_are_good_names_anywhere(what: str, negative: str) -> None:
    name = Job(what, 0, negative).file_name
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*-0\.png", name)
    assert len(name) < 100
    assert Path(name).stem not in RESERVED


def test_names_differ() -> None:
    jobs = [Job(what, seed, negative) for what in HOSTILE for seed in (0, 1) for negative in ("", "a", "红")]
    assert len({job.file_name for job in jobs}) == len(jobs)
    _require_own_files([*jobs, *jobs])


@pytest.mark.parametrize(
    ("job", "name"),
    [
        (Job("a red circle", 3), "a-red-circle-3.png"),
        (Job("7", 0), "7-0.png"),
        (Job("A red circle", 3), "a-red-circle-4cae706e-3.png"),
        (Job("a red circle", 3, "blue"), "a-red-circle-df54d13d-3.png"),
    ],
)
def test_ordinary_names_stay_as_they_were(job: Job, name: str) -> None:
    assert job.file_name == name


def test_two_jobs_never_share_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zlib.crc32", lambda content: 0)
    with pytest.raises(ValueError, match="'A' and 'a!' would both be written to a-00000000-0.png"):
        _require_own_files([Job("A", 0), Job("a!", 0)])


def test_half_a_surrogate_pair_on_the_command_line() -> None:
    for prompts, negatives in ((["a\udce4"], []), (["a"], ["\ud800"])):
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            prompt_jobs(prompts, None, negatives, [0])
