"""A reward's scores over HTTP: the protocol of `rewards/http_client.py`, behind the limits of every server.

It has no passwords and no encryption: keep it inside a network you trust. A few requests are read and scored
at once, and of these one at a time decodes images and calls the reward. So memory is bounded: bodies of
`Limits.num_readers` requests and the images of one.
"""

import asyncio
import base64
import json
import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from torch import Tensor

from swiftmask.core.settings import first_line
from swiftmask.data.images.decode import decode_image
from swiftmask.serve.errors import RequestError
from swiftmask.serve.frame import Frame
from swiftmask.serve.limits import BodyReader, Limits
from swiftmask.serve.listening import ListeningServer, bound_socket

Reward = Callable[[Tensor, Sequence[str]], Tensor | Sequence[float | None]]
"""`reward(images_B3HW, prompts) -> scores_B`, images in [0, 1]; None or NaN where it does not apply."""

_log = logging.getLogger(__name__)
_NOT_A_PNG = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are none, truncated or hostile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardService:
    """A reward, and what may be asked of it.

    Attributes:
        reward: called without gradient.
        name: what /health tells.
        device: where the reward gets its images.
        max_images: images of a request.
        max_pixels: of all its images together (18 bytes each in memory); 16 images of 1024x1024.
    """

    reward: Reward
    name: str
    device: torch.device = torch.device("cpu")
    limits: Limits = field(default_factory=Limits)
    max_images: int = 256
    max_pixels: int = 2**24
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def score(self, body: bytes) -> list[float | None]:
        """Scores for the body of a request.

        Errors: ValueError for a bad request, also where the reward itself says so (a prompt it cannot read);
        anything else is the reward's failure.
        """
        with self._one_at_a_time, torch.no_grad():
            images_B3HW, prompts = read_request(body, max_images=self.max_images, max_pixels=self.max_pixels)
            return _checked(self.reward(images_B3HW.to(self.device), prompts), len(prompts))


def reward_app(service: RewardService) -> Any:
    """The ASGI app: POST /score and GET /health. An error is `{"error": one line}`."""
    reader = BodyReader(service.limits)

    async def health() -> Response:
        return JSONResponse({"status": "ok", "reward": service.name})

    async def score(request: Request) -> Response:
        async with reader.body(request.headers, request.receive) as body:
            return JSONResponse({"scores": await asyncio.to_thread(_scored, service, body)})

    async def unknown(request: Request, error: Exception) -> Response:
        raise RequestError(f"there is POST /score and GET /health, not {request.url.path!r:.200}", status=404)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/score", score, methods=["POST"])
    app.add_exception_handler(HTTPException, unknown)
    app.add_middleware(Frame, error_content=lambda error: {"error": error.message})
    return app


def make_server(service: RewardService, *, host: str = "127.0.0.1", port: int = 0) -> ListeningServer:
    """A server that listens; `serve_forever()` answers. Port 0 takes a free one (`server_port` tells).

    Errors: ValueError if it cannot listen there, or for an empty host, which would mean every address.
    """
    return ListeningServer(reward_app(service), bound_socket(host, port), limits=service.limits)


def _scored(service: RewardService, body: bytes) -> list[float | None]:
    """Errors: RequestError."""
    try:
        return service.score(body)
    except ValueError as error:
        raise RequestError(first_line(error)) from error
    except Exception as error:  # whatever a reward may raise, the server lives on
        _log.exception("the reward failed")
        said = f"the reward failed ({type(error).__name__}: {first_line(error)})"
        raise RequestError(said, status=500) from error


def read_request(body: bytes, *, max_images: int, max_pixels: int) -> tuple[Tensor, list[str]]:
    """Images `images_B3HW` in [0, 1] and prompts. Errors: ValueError saying what is wrong."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is no JSON ({first_line(error)})") from error
    pictures, prompts = (_texts(content, name) for name in ("images", "prompts"))
    if len(pictures) != len(prompts) or not prompts:
        raise ValueError(
            f"expected one prompt per image and at least one, got {len(pictures)} images and "
            f"{len(prompts)} prompts"
        )
    if len(prompts) > max_images:
        raise ValueError(f"expected at most {max_images} images a request, got {len(prompts)}")
    return _read_images(pictures, max_pixels), prompts


def _texts(content: object, name: str) -> list[str]:
    texts = content.get(name) if isinstance(content, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"expected {{'images': [base64 PNG, ...], 'prompts': [...]}}: {name!r} is no list of texts"
        )
    return texts


def _read_images(pictures: list[str], num_pixels: int) -> Tensor:
    budget = num_pixels // len(pictures)
    images_3HW = [_read_png(text, index, budget) for index, text in enumerate(pictures)]
    sizes = {tuple(image_3HW.shape[1:]) for image_3HW in images_3HW}
    if len(sizes) > 1:
        raise ValueError(f"images of one request need one size, got {sorted(sizes)}")
    return torch.stack(images_3HW).float().div_(255)


def _read_png(text: str, index: int, num_pixels: int) -> Tensor:
    """Bytes `[3, H, W]`; the size is known, and refused, before anything is unpacked."""
    try:
        content = base64.b64decode(text, validate=True)
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            fits = image.width * image.height <= num_pixels
        pixels_HW3 = np.array(decode_image(content, f"{index}").image) if fits else None
    except _NOT_A_PNG as error:
        raise ValueError(f"image {index} is no PNG in base64 ({first_line(error)})") from error
    if pixels_HW3 is None:
        raise ValueError(f"image {index} has more than {num_pixels} pixels: send fewer or smaller ones")
    return torch.from_numpy(pixels_HW3).permute(2, 0, 1)


def _checked(scores: Tensor | Sequence[float | None], num_images: int) -> list[float | None]:
    """As JSON can tell them. Errors: RuntimeError for another number of scores, or an infinite one."""
    values = scores.tolist() if isinstance(scores, Tensor) else list(scores)
    if len(values) != num_images:
        raise RuntimeError(f"expected {num_images} scores, got {len(values)}")
    numbers = [math.nan if value is None else float(value) for value in values]
    if any(map(math.isinf, numbers)):
        raise RuntimeError("a score is infinite")
    return [None if math.isnan(number) else number for number in numbers]
