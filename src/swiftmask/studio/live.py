"""Two decodes while they run: what is on each canvas, which steps are done, and what they cost so far."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from swiftmask.serve.prepare import Prepared, prepare
from swiftmask.serve.requests import Asked
from swiftmask.serve.service import ImageService, images_of, images_to_come, too_late

TICK_S = 0.2
"""Seconds between two states, at most: time counts while a long step runs."""


@dataclass(slots=True)
class Side:
    """One of the two decodes.

    Attributes:
        flops: operations of an image by step; empty until they are counted.
        num_done: steps that are done.
        images: as far as they are, by row; None before the first step.
        seconds: an image has taken so far.
        cost: as the server tells it, once the images are finished.
    """

    prepared: Prepared
    seeds: list[int]
    flops: list[int] = field(default_factory=list)
    num_done: int = 0
    images: list[Image.Image | None] = field(default_factory=list)
    seconds: float = 0.0
    cost: dict[str, Any] | None = None

    @property
    def full(self) -> list[bool]:
        """Which steps run the backbone."""
        return [step.full for step in self.prepared.schedule]

    @property
    def running(self) -> bool:
        """Whether its decode has begun and is not over."""
        return self.prepared.job.started is not None and self.cost is None

    def advance(self) -> None:
        """Count the time."""
        job = self.prepared.job
        if self.running and job.started is not None:
            self.seconds = (time.monotonic() - job.started) / len(job.rows)

    def finish(self, images: list[Image.Image], cost: dict[str, Any]) -> None:
        """Every step is done, and the cost is known."""
        self.images, self.cost = list(images), cost
        self.num_done = len(self.prepared.schedule)
        self.seconds = cost["ms_per_image"] / 1000


async def sides_of(service: ImageService, *asked: Asked) -> list[Side]:
    """The decodes of some requests, which nothing has begun. Errors: RequestError."""
    sides = []
    for each in asked:
        prepared = await asyncio.to_thread(prepare, service.catalogue, each)
        prepared.job.num_partial = len(prepared.schedule) - 1
        sides.append(Side(prepared, each.seeds, images=[None] * len(each.what)))
    return sides


async def run(service: ImageService, sides: list[Side]) -> AsyncGenerator[None, None]:
    """Queue the decodes and follow them: each time it yields, the sides tell more.

    They stop at the next step when nobody follows any more.

    Errors: RequestError.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    try:
        for side in sides:
            _watch(side, lambda: loop.call_soon_threadsafe(changed.set))
            service.batches.submit(side.prepared.job)
        counts = [asyncio.wrap_future(service.costs.counted(side.prepared)) for side in sides]
        results = [images_to_come(side.prepared.job) for side in sides]
        for result in results:
            result.add_done_callback(lambda _: changed.set())
        deadline = loop.time() + service.settings.timeout_s
        while any(side.cost is None for side in sides):
            if loop.time() > deadline:
                raise too_late(service.settings.timeout_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await changed.wait()
            changed.clear()
            for side, result, counted in zip(sides, results, counts, strict=True):
                side.advance()
                if result.done() and side.cost is None:
                    side.finish(images_of(result), service.costs.told(side.prepared, await counted))
                side.flops = side.flops or service.costs.by_step(side.prepared) or []
            yield
    finally:
        for side in sides:
            side.prepared.job.cancel()


def _watch(side: Side, tell: Callable[[], object]) -> None:
    """Keep the unfinished images of a side as they come, in the thread of the model."""
    job = side.prepared.job
    steps = {index: step for step, index in job.partial_steps().items()}

    def on_partial(row: int, index: int, image: Image.Image) -> None:
        side.images[row] = image
        side.num_done = steps[index] + 1
        tell()

    job.on_partial = on_partial
