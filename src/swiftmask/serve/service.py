"""What answers for images in one process: the model's thread, what is loaded, and what a decode costs.

The routes of the server (`app.py`) and the pages beside them share one service, and so one queue.
"""

import asyncio
from dataclasses import dataclass, field

from PIL import Image

from swiftmask.serve.batches import Batches, BatchLimits, Job, StoppedError
from swiftmask.serve.catalogue import Catalogue
from swiftmask.serve.costs import measured_pace
from swiftmask.serve.errors import RequestError
from swiftmask.serve.limits import Limits
from swiftmask.serve.metrics import Metrics
from swiftmask.serve.prepare import Costs
from swiftmask.serve.requests import RequestLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """How a server behaves, besides what it serves.

    Attributes:
        timeout_s: seconds from a request's arrival to its answer.
        api_key: that requests must carry; None for none.
        log_prompts: whether the log tells what was asked for.
    """

    limits: Limits = field(default_factory=Limits)
    requests: RequestLimits = field(default_factory=RequestLimits)
    batches: BatchLimits = field(default_factory=BatchLimits)
    timeout_s: float = 120.0
    api_key: str | None = field(default=None, repr=False)
    log_prompts: bool = False


class ImageService:
    """Starts the thread of the model and warms it up; `close` ends it.

    Errors: what the first decode raises, such as FloatingPointError for damaged weights.
    """

    def __init__(self, catalogue: Catalogue, settings: ServeSettings) -> None:
        self.catalogue, self.settings, self.metrics = catalogue, settings, Metrics()
        self.batches = Batches(settings.batches, self.metrics)
        self.metrics.watch(self.batches)
        self.costs = Costs(self.batches)
        base = next(iter(catalogue.variants.values()))
        try:
            self.costs.pace = self.batches.call(
                lambda: measured_pace(
                    self.costs.operations, (base.name, base.size), base.pipeline, settings.batches.max_batch
                )
            ).result()
        except BaseException:
            self.batches.close()
            raise

    def close(self) -> None:
        """Finish what waits."""
        self.batches.close()


def images_to_come(job: Job) -> "asyncio.Future[list[Image.Image]]":
    """The images of a job, in the running event loop. A job that fails after everyone went leaves no
    complaint of asyncio in the log.
    """
    waiting = asyncio.wrap_future(job.future)
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())
    return waiting


def images_of(future: "asyncio.Future[list[Image.Image]]") -> list[Image.Image]:
    """The images of a job that is over.

    Errors: RequestError for what a client may know; else the decode's.
    """
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, StoppedError):
        raise RequestError("the request was cancelled", status=499, close=True)
    if isinstance(error, FloatingPointError):
        raise RequestError("the model gave numbers that are not finite", status=500, code="not_finite")
    raise error


def too_late(timeout_s: float) -> RequestError:
    """The error for a job that took too long."""
    return RequestError(f"no answer within {timeout_s:g} seconds", status=504, code="timeout")
