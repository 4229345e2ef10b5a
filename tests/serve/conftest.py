"""A server's app around the golden MaskGIT: 16 tokens, images of 8x8 pixels, seven classes."""

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from swiftmask.serve.app import ServeSettings, image_app
from swiftmask.serve.batches import BatchLimits
from swiftmask.serve.catalogue import Catalogue
from swiftmask.serve.limits import Limits
from swiftmask.serve.requests import RequestLimits


@pytest.fixture(scope="session")
def client(tiny_catalogue: Catalogue) -> Iterator[TestClient]:
    """Of an app that waits long enough for requests to meet in a batch."""
    settings = ServeSettings(
        limits=Limits(num_bytes=200_000),
        requests=RequestLimits(max_images=8, max_prompt=40, max_steps=16, max_pixels=10_000),
        batches=BatchLimits(max_batch=4, max_wait_s=0.05, max_queue=32),
        timeout_s=60,
    )
    with TestClient(image_app(tiny_catalogue, settings), raise_server_exceptions=False) as client:
        yield client


def pixels_of(entry: dict[str, str]) -> np.ndarray:
    """An image of an answer."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))))


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()
