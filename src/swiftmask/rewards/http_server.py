"""A small reference server for the protocol of `http_client`: one reward, and the standard library.

It has no passwords and no encryption: keep it inside a network you trust. Each request is decoded in a thread
of its own; the reward itself is called by one thread at a time.
"""

import base64
import json
import logging
import math
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from swiftmask.core.files import first_line

Reward = Callable[[Tensor, Sequence[str]], Tensor | Sequence[float | None]]
"""`reward(images_B3HW, prompts) -> scores_B`, pictures in [0, 1]; None or NaN where it does not apply."""

Answer = tuple[HTTPStatus, dict[str, object]]

_log = logging.getLogger(__name__)
_NOT_A_PNG = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are none, truncated or hostile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one request.

    Attributes:
        num_bytes: of its body.
        num_images: pictures.
        num_pixels: of all its pictures together (12 bytes each in memory).
        idle_s: seconds its sender may be silent.
    """

    num_bytes: int = 64 * 2**20
    num_images: int = 256
    num_pixels: int = 2**26
    idle_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardService:
    """A reward, and what may be asked of it.

    Attributes:
        reward: called without gradient.
        name: what /health tells.
        device: where the reward gets its pictures.
    """

    reward: Reward
    name: str
    device: torch.device = torch.device("cpu")
    limits: Limits = field(default_factory=Limits)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def score(self, body: bytes) -> list[float | None]:
        """Scores for the body of a request.

        Errors: ValueError for a bad request, also where the reward itself says so (a prompt it cannot read);
        anything else is the reward's failure.
        """
        images_B3HW, prompts = read_request(body, self.limits)
        with self._one_at_a_time, torch.no_grad():
            return _checked(self.reward(images_B3HW.to(self.device), prompts), len(prompts))


def make_server(service: RewardService, *, host: str = "127.0.0.1", port: int = 0) -> ThreadingHTTPServer:
    """A server that listens; `serve_forever()` answers. Port 0 takes a free one (`server_port` tells).

    Errors: ValueError if it cannot listen there.
    """
    try:
        return ThreadingHTTPServer((host, port), partial(_Conversation, service))
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"cannot listen on {host}:{port} ({first_line(error)}): choose another host or port"
        ) from error


def read_request(body: bytes, limits: Limits) -> tuple[Tensor, list[str]]:
    """Pictures `images_B3HW` in [0, 1] and prompts. Errors: ValueError saying what is wrong."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is no JSON ({first_line(error)})") from error
    pictures, prompts = (_texts(content, name) for name in ("images", "prompts"))
    if len(pictures) != len(prompts) or not prompts:
        raise ValueError(
            f"expected one prompt per picture and at least one, got {len(pictures)} pictures and "
            f"{len(prompts)} prompts"
        )
    if len(prompts) > limits.num_images:
        raise ValueError(f"expected at most {limits.num_images} pictures a request, got {len(prompts)}")
    return _read_pictures(pictures, limits.num_pixels), prompts


def _texts(content: object, name: str) -> list[str]:
    texts = content.get(name) if isinstance(content, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"expected {{'images': [base64 PNG, ...], 'prompts': [...]}}: {name!r} is no list of texts"
        )
    return texts


def _read_pictures(pictures: list[str], num_pixels: int) -> Tensor:
    budget = num_pixels // len(pictures)
    images_3HW = [_read_png(text, index, budget) for index, text in enumerate(pictures)]
    sizes = {tuple(image_3HW.shape[1:]) for image_3HW in images_3HW}
    if len(sizes) > 1:
        raise ValueError(f"pictures of one request need one size, got {sorted(sizes)}")
    return torch.stack(images_3HW).float() / 255


def _read_png(text: str, index: int, num_pixels: int) -> Tensor:
    """Bytes `[3, H, W]`; the size is known, and refused, before anything is unpacked."""
    try:
        with Image.open(BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as image:
            fits = image.width * image.height <= num_pixels
            pixels_HW3 = np.array(image.convert("RGB")) if fits else None
    except _NOT_A_PNG as error:
        raise ValueError(f"picture {index} is no PNG in base64 ({first_line(error)})") from error
    if pixels_HW3 is None:
        raise ValueError(f"picture {index} has more than {num_pixels} pixels: send fewer or smaller ones")
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


class _Conversation(BaseHTTPRequestHandler):
    """One connection, one request."""

    def __init__(self, service: RewardService, *connection: object) -> None:
        self.service = service
        super().__init__(*connection)  # pyright: ignore[reportArgumentType]

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.service.limits.idle_s)

    def handle(self) -> None:
        with suppress(ConnectionError):  # the asker is gone
            super().handle()

    def do_GET(self) -> None:
        if self.path == "/health":
            self._answer(HTTPStatus.OK, {"status": "ok", "reward": self.service.name})
        else:
            self._answer(*_unknown(self.path))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,15}", length):
            self._answer(*_refused(HTTPStatus.LENGTH_REQUIRED, "a Content-Length is needed"))
        elif int(length) > self.service.limits.num_bytes:
            self._discard(int(length))
            said = f"the body has {length} bytes, at most {self.service.limits.num_bytes} are read"
            self._answer(*_refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{said}: send fewer pictures"))
        else:
            body = self.rfile.read(int(length))
            self._answer(*(self._score(body) if self.path == "/score" else _unknown(self.path)))

    def _score(self, body: bytes) -> Answer:
        try:
            return HTTPStatus.OK, {"scores": self.service.score(body)}
        except ValueError as error:
            return _refused(HTTPStatus.BAD_REQUEST, first_line(error))
        except Exception as error:  # whatever a reward may raise, the server lives on
            _log.exception("the reward failed")
            said = f"the reward failed ({type(error).__name__}: {first_line(error)})"
            return _refused(HTTPStatus.INTERNAL_SERVER_ERROR, said)

    def _discard(self, length: int) -> None:
        """Reads some of what nobody wants: a sender still sending would never see the answer."""
        left = min(length, 4 * self.service.limits.num_bytes)
        while left > 0 and (piece := self.rfile.read(min(left, 2**20))):
            left -= len(piece)

    def _answer(self, status: HTTPStatus, content: dict[str, object]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        _log.info(format, *args)


def _refused(status: HTTPStatus, line: str) -> Answer:
    return status, {"error": line}


def _unknown(path: str) -> Answer:
    return _refused(HTTPStatus.NOT_FOUND, f"there is POST /score and GET /health, not {path!r}")
