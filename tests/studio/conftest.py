"""A service around the golden MaskGIT: 16 tokens, images of 8x8 pixels, seven classes, a shortcut, reuse."""

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from swiftmask.serve.batches import BatchLimits
from swiftmask.serve.catalogue import Catalogue
from swiftmask.serve.requests import RequestLimits
from swiftmask.serve.service import ImageService, ServeSettings
from swiftmask.studio import live, markup
from swiftmask.studio.session import Knobs, requests_of

T = TypeVar("T")


@pytest.fixture(scope="session")
def service(tiny_catalogue: Catalogue) -> Iterator[ImageService]:
    settings = ServeSettings(
        requests=RequestLimits(max_images=8, max_prompt=40, max_steps=16),
        batches=BatchLimits(max_batch=4, max_wait_s=0.0, max_queue=8),
    )
    service = ImageService(tiny_catalogue, settings)
    yield service
    service.close()


def knobs(**changes: Any) -> Knobs:
    return Knobs(
        **{
            "what": ("3",),
            "variant": "tiny+shortcut",
            "steps": 4,
            "full_steps": 2,
            "baseline_steps": 4,
            **changes,
        }
    )


def followed(service: ImageService, chosen: Knobs) -> tuple[list[live.Side], list[tuple[int, int]]]:
    """Both sides at the end, and the steps that were done whenever something was told."""

    async def follow() -> tuple[list[live.Side], list[tuple[int, int]]]:
        asked = requests_of(chosen, service.catalogue, service.settings.requests)
        sides = await live.sides_of(service, *asked)
        told = []
        async for _ in live.run(service, sides):
            told.append((sides[0].num_done, sides[1].num_done))
            assert markup.comparison(sides, ("full", "fast")).count("<section") == 2
        return sides, told

    return ran(follow())


def ran(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, in a thread of its own: tests of pages in a browser leave their loop running
    in the main one.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
