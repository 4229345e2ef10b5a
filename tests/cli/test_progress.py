"""Progress: the estimate and the lines that are written where stderr is no terminal."""

import re
import time

import pytest
from rich.console import Console
from rich.progress import Progress

from swiftmask.cli import progress
from swiftmask.cli.progress import counting, duration, note, notes_held, progress_bar


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line each fiftieth of a second, and estimates at once."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.02)
    monkeypatch.setattr(progress, "_FIRST_ESTIMATE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_FOUND_SECONDS", 0.05)


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_lines_without_a_terminal(fast: None, capsys: pytest.CaptureFixture[str]) -> None:
    with counting("generating", 1000, unit="images") as advance:
        for _ in range(20):
            time.sleep(0.02)
            advance(10, "vanilla-4")
    lines = _lines(capsys)
    pattern = (
        r"generating: vanilla-4: \d+ of 1,000 images \(\d+ %\), [\d.]+ images/s, \d+ s elapsed, \d+ s left"
    )
    assert any(re.fullmatch(pattern, line) for line in lines), lines
    estimates = [line for line in lines if "in all" in line]
    assert len(estimates) == 1
    assert re.fullmatch(r"generating: vanilla-4: about \d+ s in all", estimates[0])


def test_what_a_resumed_run_found_done_is_no_speed(fast: None, capsys: pytest.CaptureFixture[str]) -> None:
    with counting("measuring", 2000, unit="images") as advance:
        time.sleep(0.03)
        advance(1000, "done before")
        for _ in range(20):
            time.sleep(0.02)
            advance(1, "new")
    speeds = [
        float(found[1]) for line in _lines(capsys) if (found := re.search(r"([\d.e+]+) images/s", line))
    ]
    assert speeds
    assert max(speeds) < 100, "20 ms an image, at most 50 a second"


def test_a_line_where_nothing_is_counted(fast: None, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as bar:
        time.sleep(0.06)
        bar.add_task("comparing", total=None)
        time.sleep(0.06)
    lines = _lines(capsys)
    assert "working for 0 s, nothing counted yet" in lines
    assert "comparing: 0, 0 s elapsed, time left not known yet" in lines


def test_other_processes_and_short_work_are_silent(
    fast: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with counting("generating", 10, shown=False) as advance:
        time.sleep(0.06)
        advance(1, "row")
    monkeypatch.setattr(progress, "LINE_SECONDS", 60.0)
    with counting("generating", 10) as advance:
        advance(10, "row")
    assert not _lines(capsys)


def test_the_bar_of_a_terminal_names_both_times() -> None:
    pace = progress._Pace()
    bar = Progress(console=Console(quiet=True))
    bar.add_task("generating", total=400, completed=100, unit="images")
    task = bar.tasks[0]
    seen = pace.look(task)
    seen.began, seen.since = seen.began - 10, seen.since - 10
    bar.update(task.id, advance=100)
    text = progress._Status(pace).render(task).plain
    assert text == "200 of 400 images (50 %), 10 s elapsed, 20 s left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.2, "12 s"), (99.0, "99 s"), (600, "10 minutes"), (12_000, "3.3 hours")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_notes_are_said_when_work_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with notes_held():
        note("first")
        assert not _lines(capsys)
        with progress_bar() as bar:
            bar.add_task("generating")
        note("second")
        assert _lines(capsys) == ["first", "second"]


def test_notes_are_said_in_the_end_or_after_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with notes_held():
        note("in the end")
        assert not _lines(capsys)
    assert _lines(capsys) == ["in the end"]
    monkeypatch.setattr(progress, "_HELD_SECONDS", 0.01)
    with notes_held():
        note("after a while")
        time.sleep(0.1)
        assert _lines(capsys) == ["after a while"]


def test_a_mistake_is_said_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="wrong"), notes_held():
        note("never said")
        raise ValueError("wrong")
    note("said")
    assert _lines(capsys) == ["said"]
