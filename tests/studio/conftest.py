"""A service around the golden MaskGIT: 16 tokens, images of 8x8 pixels, seven classes, a shortcut, reuse."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import swiftmask
from swiftmask.serve.batches import BatchLimits
from swiftmask.serve.catalogue import Accelerators, Catalogue
from swiftmask.serve.requests import RequestLimits
from swiftmask.serve.service import ImageService, ServeSettings


@pytest.fixture(scope="session")
def tiny_catalogue(tiny_folder: Path, tiny_shortcut_folder: Path) -> Catalogue:
    accelerators = Accelerators(shortcut=[str(tiny_shortcut_folder)], caching=["reuse"])
    return Catalogue.of(swiftmask.load(tiny_folder), accelerators)


@pytest.fixture(scope="session")
def service(tiny_catalogue: Catalogue) -> Iterator[ImageService]:
    settings = ServeSettings(
        requests=RequestLimits(max_images=8, max_prompt=40, max_steps=16),
        batches=BatchLimits(max_batch=4, max_wait_s=0.0, max_queue=8),
    )
    service = ImageService(tiny_catalogue, settings)
    yield service
    service.close()
