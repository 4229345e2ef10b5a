"""Progress and notes on stderr, so that stdout stays clean for results.

On a terminal: a bar with the elapsed and the remaining time. Elsewhere: one line a minute.
"""

import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

LINE_SECONDS = 60.0
"""Time between two lines where stderr is no terminal."""

_FIRST_ESTIMATE_SECONDS = 5.0
"""An estimate is made after so much work, and said where so much more than a line's time is left."""

_FOUND_SECONDS = 1.0
"""What is counted this soon after a task's begin was found done (a resumed run), and is no speed."""

_HELD_SECONDS = 10.0
"""The longest that a note is held."""


@contextmanager
def progress_bar(*, shown: bool = True) -> Iterator[Progress]:
    """A rich `Progress`: its tasks are shown as bars, or as lines where stderr is no terminal.

    Tasks may name what they count: `add_task(..., unit="images")`. A task without a total has no time left.

    Args:
        shown: whether this process speaks; the first one of several does.
    """
    console = Console(stderr=True)
    pace = _Pace()
    columns = (TextColumn("{task.description}"), BarColumn(), _Status(pace))
    with _Bar(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as progress:
        if not shown:
            yield progress
            return
        with _reporting(progress, pace, every_minute=not console.is_terminal):
            yield progress


@contextmanager
def counting(
    title: str, total: float, *, unit: str = "", shown: bool = True
) -> Iterator[Callable[[float, str], None]]:
    """One task of a `progress_bar`; yields `advance(amount, what)`."""
    with progress_bar(shown=shown) as progress:
        task = progress.add_task(title, total=total, unit=unit)
        yield lambda amount, what: progress.update(task, advance=amount, description=f"{title}: {what}")


def counted(bar: Progress, what: str) -> Callable[[int, int], None]:
    """`on_progress(done, total)` as a task of images of a bar. It begins with what was there already, which
    would otherwise count as speed.
    """
    tasks: list[TaskID] = []

    def on_progress(done: int, total: int) -> None:
        if not tasks:
            tasks.append(bar.add_task(what, total=total, completed=done, unit="images"))
        bar.update(tasks[0], completed=done)

    return on_progress


def note(text: str) -> None:
    """A line for the person at the keyboard; under `notes_held` not before work begins."""
    if not _HELD.keep(text):
        sys.stderr.write(f"{text}\n")


@contextmanager
def notes_held() -> Iterator[None]:
    """Hold notes until a task of a `progress_bar` begins, a few seconds pass, or this ends well: what is
    wrong with a command is one line on stderr with nothing beside it.
    """
    later = threading.Timer(_HELD_SECONDS, _release_notes)
    later.daemon = True
    _HELD.begin()
    later.start()
    try:
        yield
        _release_notes()
    except KeyboardInterrupt:  # no mistake
        _release_notes()
        raise
    finally:
        later.cancel()
        _HELD.end()


def _release_notes() -> None:
    for text in _HELD.end():
        note(text)


class _Held:
    """Notes of this process that are not said yet; none are kept before `begin` and after `end`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: list[str] | None = None

    def begin(self) -> None:
        with self._lock:
            self._texts = []

    def keep(self, text: str) -> bool:
        """Whether the note is kept."""
        with self._lock:
            if self._texts is not None:
                self._texts.append(text)
            return self._texts is not None

    def end(self) -> list[str]:
        """What was kept."""
        with self._lock:
            texts, self._texts = self._texts, None
            return texts or []


_HELD = _Held()


class _Bar(Progress):
    """A `Progress` whose first task has held notes said."""

    def add_task(self, *args: Any, **fields: Any) -> TaskID:
        _release_notes()
        return super().add_task(*args, **fields)


def show_warnings() -> None:
    """Have what the library warns of (`logging`) written as notes, and nothing of Pillow's sizes: what is too
    large is refused (data/images/decode.py).
    """
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    log = logging.getLogger("swiftmask")
    if not any(isinstance(handler, _Notes) for handler in log.handlers):
        log.addHandler(_Notes(logging.WARNING))


@dataclass(slots=True)
class _Measured:
    """One task's count at its begin (or as found done then), and now; seconds."""

    began: float
    since: float
    first: float
    now: float
    count: float


class _Pace:
    """The speed of tasks since their begin, without what a resumed run found done."""

    def __init__(self) -> None:
        self._tasks: dict[TaskID, _Measured] = {}

    def look(self, task: Task) -> _Measured:
        """The task as measured until now."""
        now = time.monotonic()
        seen = self._tasks.setdefault(task.id, _Measured(now, now, task.completed, now, task.completed))
        seen.now, seen.count = now, task.completed
        if now - seen.began < _FOUND_SECONDS:
            seen.since, seen.first = now, task.completed
        return seen

    def per_second(self, task: Task) -> float | None:
        """None if nothing has been done yet."""
        seen = self.look(task)
        seconds, done = seen.now - seen.since, seen.count - seen.first
        return done / seconds if done > 0 and seconds > 0 else None

    def seconds_left(self, task: Task) -> float | None:
        """None if nothing has been done yet, or the total is unknown."""
        speed = self.per_second(task)
        return None if speed is None or task.remaining is None else task.remaining / speed

    def elapsed(self, task: Task) -> float:
        seen = self.look(task)
        return seen.now - seen.began


class _Status(ProgressColumn):
    """Count, elapsed and remaining time of a bar."""

    def __init__(self, pace: _Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        left = self._pace.seconds_left(task)
        parts = [_count(task), f"{duration(self._pace.elapsed(task))} elapsed"]
        return Text(", ".join([*parts, *([] if left is None else [f"{duration(left)} left"])]))


@contextmanager
def _reporting(progress: Progress, pace: _Pace, *, every_minute: bool) -> Iterator[None]:
    """Say the first estimate of long work, and a line a minute where nothing shows a bar."""
    ended = threading.Event()
    began = time.monotonic()

    def watch() -> None:
        estimated: set[TaskID] = set()
        spoke = began
        while not ended.wait(min(1.0, LINE_SECONDS)):
            for task in progress.tasks:
                if task.id not in estimated and (line := _estimate(task, pace)):
                    estimated.add(task.id)
                    _say(progress, line)
            if every_minute and time.monotonic() - spoke >= LINE_SECONDS:
                spoke = time.monotonic()
                running = [task for task in progress.tasks if not task.finished]
                _say(progress, line_of(running[-1], pace) if running else _waiting(spoke - began))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _say(progress: Progress, line: str) -> None:
    """Above the bar, if there is one."""
    if progress.disable:
        note(line)
    else:
        progress.console.print(line, highlight=False, markup=False)


def _waiting(seconds: float) -> str:
    return f"working for {duration(seconds)}, nothing counted yet"


def _estimate(task: Task, pace: _Pace) -> str:
    """What the whole task will take, once that is known and long; otherwise nothing."""
    left = pace.seconds_left(task)
    if left is None or pace.elapsed(task) < _FIRST_ESTIMATE_SECONDS or left < LINE_SECONDS:
        return ""
    return f"{task.description}: about {duration(pace.elapsed(task) + left)} in all"


def line_of(task: Task, pace: _Pace) -> str:
    """Count, rate and time left of a task in one line."""
    speed, left = pace.per_second(task), pace.seconds_left(task)
    parts = [_count(task)]
    if speed is not None:
        unit = task.fields.get("unit", "")
        parts.append(f"{speed:.3g}{' ' + unit if unit else ''}/s" if speed >= 1 else _slow(speed, unit))
    parts.append(f"{duration(pace.elapsed(task))} elapsed")
    parts.append("time left not known yet" if left is None else f"{duration(left)} left")
    return f"{task.description}: {', '.join(parts)}"


def _slow(speed: float, unit: str) -> str:
    """Less than one a second, as a number a minute."""
    return f"{60 * speed:.3g}{' ' + unit if unit else ''}/minute"


def _count(task: Task) -> str:
    """ "120 of 400 images (30 %)"."""
    unit = task.fields.get("unit", "")
    of_all = "" if task.total is None else f" of {task.total:,.0f}"
    share = f" ({task.percentage:.0f} %)" if task.total else ""
    return f"{task.completed:,.0f}{of_all}{' ' + unit if unit else ''}{share}"


def duration(seconds: float) -> str:
    """ "45 s", "12 minutes" or "3.4 hours"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 100 * 60 else f"{seconds / 3600:.1f} hours"


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(self.format(record))
