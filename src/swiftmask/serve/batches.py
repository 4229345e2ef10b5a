"""Requests to decodes: one thread owns the model, collects jobs that can share a decode, and runs them.

The thread takes the images of the job that has waited longest, and with them those of every job with the
same key. It waits for more at most `max_wait_s`, so a lone request loses no more than that. An image depends
on its seed alone, so it is the same in any batch. A job with more images than a batch holds is split, and a
batch that fails is halved until the image that fails stands alone: the others are answered.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image

from swiftmask.core.types import Canvas, Record
from swiftmask.data.images.inpainting import StartImage
from swiftmask.data.images.pixels import to_pil
from swiftmask.models.meissonic import Prompt
from swiftmask.pipeline import Pipeline, synchronise
from swiftmask.serve.errors import RequestError

_log = logging.getLogger(__name__)

OnPartial = Callable[[int, int, Image.Image], None]
"""`on_partial(row, index, image)`: called in the thread of the model."""


class StoppedError(Exception):
    """Ends a decode whose clients are all gone."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image: a class or prompt, its seed, and what it starts from."""

    what: "str | Prompt"
    seed: int
    start: StartImage | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What one decode had of a job.

    Attributes:
        num_rows: images of this job in it.
        batch_size: images of all jobs.
        seconds, decoder_seconds: of the whole decode, without its unfinished images, and of turning its
            tokens into pixels.
    """

    num_rows: int
    batch_size: int
    seconds: float
    decoder_seconds: float


@dataclass(eq=False, slots=True, kw_only=True)
class Job:
    """The images of one request.

    Attributes:
        key: equal for jobs that can share a decode.
        pipeline: generates all of its rows; the same for equal keys.
        steps: of the decode.
        num_partial: unfinished images to tell of each row.
        images: by row, where they are finished.
        future: the finished images, or why there are none.
        shares: of the decodes that it took part in.
        cancelled: nobody waits for it any more.
    """

    key: Hashable
    pipeline: Pipeline
    rows: Sequence[Row]
    steps: int
    num_partial: int = 0
    on_partial: OnPartial | None = None
    images: dict[int, Image.Image] = field(default_factory=dict)
    future: Future[list[Image.Image]] = field(default_factory=Future)
    shares: list[Share] = field(default_factory=list)
    cancelled: bool = False
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    num_taken: int = 0

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # from now on the model's thread alone settles it

    @property
    def num_waiting(self) -> int:
        """Rows that no decode has begun."""
        return len(self.rows) - self.num_taken

    def cancel(self) -> None:
        """Nobody waits for the images: the next step stops, unless others share the decode."""
        self.cancelled = True

    def fail(self, error: Exception) -> None:
        """Settle it, in the model's thread."""
        if not self.future.done():
            self.future.set_exception(error)

    def partial_steps(self) -> dict[int, int]:
        """Index of a partial image by the step after which it is told; the last step has none."""
        places = [round((i + 1) * self.steps / (self.num_partial + 1)) - 1 for i in range(self.num_partial)]
        kept = sorted({place for place in places if 0 <= place < self.steps - 1})
        return {step: index for index, step in enumerate(kept)}


class Watcher(Protocol):
    """What is told of batches (metrics.py)."""

    def batch_done(self, size: int, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """Of the queue.

    Attributes:
        max_batch: images of one decode.
        max_wait_s: that the first job of a batch waits for others.
        max_queue: images that wait; more are refused.
    """

    max_batch: int = 16
    max_wait_s: float = 0.01
    max_queue: int = 256


class Batches:
    """The queue and the thread that empties it.

    Args:
        watcher: is told of every batch.
    """

    def __init__(self, limits: BatchLimits, watcher: Watcher | None = None) -> None:
        self.limits = limits
        self._watcher = watcher
        self._jobs: list[Job] = []
        self._calls: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._last_seconds = 1.0
        self._running = 0
        self._thread = threading.Thread(target=self._work, name="swiftmask-model", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Errors: RequestError 429 where too many images wait, 503 when closing."""
        with self._changed:
            if self._closing:
                raise RequestError("the server is stopping", status=503, code="stopping", retry_after=5)
            waiting = self._num_waiting()
            if waiting + len(job.rows) > self.limits.max_queue:
                batches = waiting / self.limits.max_batch + 1
                raise RequestError(
                    f"{waiting} images wait, at most {self.limits.max_queue} may: try again later",
                    status=429,
                    code="queue_full",
                    retry_after=max(1, round(batches * self._last_seconds)),
                )
            self._jobs.append(job)
            self._changed.notify()

    def call(self, function: Callable[[], Any]) -> "Future[Any]":
        """Run a function in the model's thread: after the next batch, or now if no job waits."""
        future: Future[Any] = Future()
        with self._changed:
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def num_waiting(self) -> int:
        """Images that no decode has begun."""
        with self._changed:
            return self._num_waiting()

    @property
    def num_running(self) -> int:
        """Images of the decode that runs."""
        return self._running

    @property
    def alive(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _num_waiting(self) -> int:
        return sum(job.num_waiting for job in self._jobs if not job.cancelled)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (taken := self._next()) and not (self._calls and not self._jobs):
                    if self._closing and not self._jobs:
                        return
                    self._changed.wait(self._wait_s())
                calls, self._calls = self._calls, []
            if taken:
                self._running = len(taken)
                self._run(taken)
                self._running = 0
            for function, future in calls:
                _settle(future, function)

    def _wait_s(self) -> float | None:
        """Until the oldest job has waited long enough; None without one."""
        if not self._jobs:
            return None
        return max(0.0, self._jobs[0].arrived + self.limits.max_wait_s - time.monotonic())

    def _next(self) -> "list[tuple[Job, int]]":
        """Jobs and rows of the next batch; empty while it is better to wait."""
        for job in [job for job in self._jobs if job.cancelled]:
            self._jobs.remove(job)
            job.fail(StoppedError())
        if not self._jobs:
            return []
        oldest = self._jobs[0]
        alike = [job for job in self._jobs if job.key == oldest.key]
        enough = sum(job.num_waiting for job in alike) >= self.limits.max_batch
        waited = time.monotonic() - oldest.arrived >= self.limits.max_wait_s
        if not (enough or waited or self._closing):
            return []
        taken: list[tuple[Job, int]] = []
        for job in alike:
            room = min(job.num_waiting, self.limits.max_batch - len(taken))
            taken += [(job, job.num_taken + place) for place in range(room)]
            job.num_taken += room
            job.started = job.started or time.monotonic()
        self._jobs = [job for job in self._jobs if job.num_waiting]
        return taken

    def _run(self, taken: "list[tuple[Job, int]]") -> None:
        taken = [(job, row) for job, row in taken if not job.cancelled]
        if not taken:
            return
        try:
            self._decode(taken)
        except StoppedError as stop:
            for job, _ in taken:
                job.fail(stop)
        except Exception as error:  # whatever a decode may raise, the thread lives on
            if len(taken) == 1:
                _log.error("a decode failed", exc_info=error)
                taken[0][0].cancel()
                taken[0][0].fail(error)
                return
            half = len(taken) // 2
            self._run(taken[:half])
            self._run(taken[half:])

    def _decode(self, taken: "list[tuple[Job, int]]") -> None:
        rows = [job.rows[row] for job, row in taken]
        pipeline = taken[0][0].pipeline
        asked: Any = [row.what for row in rows]
        of_class = pipeline.model.spec.draws == "class"
        starts = [row.start for row in rows if row.start is not None]
        started, steps = time.perf_counter(), _Steps(pipeline, taken)
        result = pipeline.generate(
            asked if of_class else None,
            prompts=None if of_class else asked,
            seeds=[row.seed for row in rows],
            start=starts or None,
            on_step=steps,
        )
        seconds = time.perf_counter() - started
        self._last_seconds = seconds
        if self._watcher is not None:
            self._watcher.batch_done(len(taken), seconds)
        cost = result.cost
        counts: dict[Job, int] = {}
        for (job, row), image in zip(taken, result.images, strict=True):
            assert isinstance(image, Image.Image)
            job.images[row] = image
            counts[job] = counts.get(job, 0) + 1
        for job, count in counts.items():
            job.shares.append(Share(count, len(taken), cost.seconds - steps.telling_s, cost.decoder_seconds))
            if len(job.images) == len(job.rows) and not job.future.done():
                job.future.set_result([job.images[row] for row in range(len(job.rows))])


class _Steps:
    """What happens after each step of a batch: it may stop, and unfinished images may be told.

    Attributes:
        telling_s: seconds that unfinished images took.
    """

    def __init__(self, pipeline: Pipeline, taken: "list[tuple[Job, int]]") -> None:
        self._pipeline, self._taken = pipeline, taken
        self.telling_s = 0.0
        self._partial = {id(job): job.partial_steps() for job, _ in taken if job.on_partial is not None}

    def __call__(self, record: Record) -> None:
        if all(job.cancelled for job, _ in self._taken):
            raise StoppedError
        if not self._partial:
            return
        told = [
            (place, job, row)
            for place, (job, row) in enumerate(self._taken)
            if not job.cancelled and record.step.index in self._partial.get(id(job), {})
        ]
        if not told:
            return
        synchronise(self._pipeline.model.device)
        started = time.perf_counter()
        images = unfinished_images(self._pipeline, record.after, [place for place, _, _ in told])
        for (_, job, row), image in zip(told, images, strict=True):
            assert job.on_partial is not None
            job.on_partial(row, self._partial[id(job)][record.step.index], image)
        self.telling_s += time.perf_counter() - started


def unfinished_images(pipeline: Pipeline, canvas: Canvas, places: Sequence[int]) -> list[Image.Image]:
    """Some images of a canvas that is still being filled: grey where tokens are masked."""
    index = torch.tensor(list(places), device=canvas.tokens_BL.device)
    chosen = Canvas(canvas.tokens_BL[index], canvas.masked_BL[index], canvas.num_masked)
    return to_pil(pipeline.pixels_of(chosen))


def _settle(future: "Future[Any]", function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # told to whoever waits for it
        future.set_exception(error)
