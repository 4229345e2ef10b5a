"""A click on the page: both decodes with the same seeds, followed step by step, on the server's queue."""

import numpy as np
import pytest

from swiftmask.serve.errors import RequestError
from swiftmask.serve.service import ImageService
from swiftmask.studio import live
from swiftmask.studio.session import requests_of

from .conftest import followed, knobs, ran


def test_both_sides_are_the_images_of_generate(service: ImageService) -> None:
    (full, fast), told = followed(service, knobs(num_images=2, seed=5))
    assert full.seeds == fast.seeds == [5, 6]
    for side, name in ((full, "tiny"), (fast, "tiny+shortcut")):
        pipeline = side.prepared.job.pipeline
        assert side.prepared.variant.name == name
        wanted = pipeline.generate([3, 3], seeds=[5, 6])
        for image, expected in zip(side.images, wanted.images, strict=True):
            assert np.array_equal(np.array(image), np.array(expected))
        assert sum(side.flops) == wanted.cost.flops, "the steps' operations are the decode's"
        assert len(side.flops) == 4
    assert full.full == [True] * 4 and sum(fast.full) == 2
    assert told == sorted(told) and told[-1] == (4, 4), "steps only ever go on"


def test_what_is_wrong_is_an_error_of_the_server(service: ImageService) -> None:
    with pytest.raises(RequestError, match="unknown class 'nobody'"):
        followed(service, knobs(what=("nobody",)))
    with pytest.raises(RequestError, match="at most 8 may"):
        followed(service, knobs(num_images=8))


def test_nobody_follows_any_more(service: ImageService) -> None:
    async def leave() -> list[live.Side]:
        asked = requests_of(knobs(steps=16), service.catalogue, service.settings.requests)
        sides = await live.sides_of(service, *asked)
        following = live.run(service, sides)
        await anext(following)
        await following.aclose()
        return sides

    for side in ran(leave()):
        assert side.prepared.job.cancelled
    (full, _), _ = followed(service, knobs())
    assert full.cost is not None, "the next click is answered"
