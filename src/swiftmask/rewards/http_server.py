"""A small reference server for the protocol of `http_client`: one reward, and the standard library.

It has no passwords and no encryption: keep it inside a network you trust. Each connection has a thread, of
which there are few; few of them read a body at once, and one at a time decodes pictures and calls the reward.
So memory is bounded: bodies of `Limits.num_readers` requests and the pictures of one.
"""

import base64
import io
import json
import logging
import math
import re
import socket
import threading
import time
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

from swiftmask.core.settings import first_line
from swiftmask.data.images.decode import decode_picture

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
        num_pixels: of all its pictures together (18 bytes each in memory); 16 pictures of 1024x1024.
        idle_s: seconds its sender may be silent, and that it may wait for its turn.
        deadline_s: seconds from connecting to the last byte of the body.
        num_readers: requests that are read, decoded or scored at once; others wait.
        num_connections: connections that are open at once; others are told to come again.
    """

    num_bytes: int = 64 * 2**20
    num_images: int = 256
    num_pixels: int = 2**24
    idle_s: float = 60.0
    deadline_s: float = 120.0
    num_readers: int = 4
    num_connections: int = 64


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
        with self._one_at_a_time, torch.no_grad():
            images_B3HW, prompts = read_request(body, self.limits)
            return _checked(self.reward(images_B3HW.to(self.device), prompts), len(prompts))


class RewardServer(ThreadingHTTPServer):
    """A thread a connection, up to `Limits.num_connections`."""

    request_queue_size = 128

    def __init__(self, service: RewardService, address: tuple[str, int]) -> None:
        self.readers = threading.BoundedSemaphore(service.limits.num_readers)
        self._connections = threading.BoundedSemaphore(service.limits.num_connections)
        super().__init__(address, partial(_Conversation, service))

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.setblocking(False)
            request.sendall(
                b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
            )
        self.shutdown_request(request)

    def process_request_thread(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()


def make_server(service: RewardService, *, host: str = "127.0.0.1", port: int = 0) -> RewardServer:
    """A server that listens; `serve_forever()` answers. Port 0 takes a free one (`server_port` tells).

    Errors: ValueError if it cannot listen there, or for an empty host, which would mean every address.
    """
    if not host.strip():
        raise ValueError("the host is empty, which listens on every address: say 0.0.0.0 if that is meant")
    try:
        return RewardServer(service, (host, port))
    except (OSError, OverflowError, TypeError) as error:  # TypeError: a host that cannot be encoded
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
            f"expected one prompt per image and at least one, got {len(pictures)} images and "
            f"{len(prompts)} prompts"
        )
    if len(prompts) > limits.num_images:
        raise ValueError(f"expected at most {limits.num_images} images a request, got {len(prompts)}")
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
        raise ValueError(f"images of one request need one size, got {sorted(sizes)}")
    return torch.stack(images_3HW).float().div_(255)


def _read_png(text: str, index: int, num_pixels: int) -> Tensor:
    """Bytes `[3, H, W]`; the size is known, and refused, before anything is unpacked."""
    try:
        content = base64.b64decode(text, validate=True)
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            fits = image.width * image.height <= num_pixels
        pixels_HW3 = np.array(decode_picture(content, f"{index}").image) if fits else None
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


class _Sender(io.RawIOBase):
    """What a connection sends, until its silence or the whole takes too long (TimeoutError)."""

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._connection = connection
        self._idle_s = limits.idle_s
        self._deadline = time.monotonic() + limits.deadline_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the sender took too long")
        self._connection.settimeout(min(self._idle_s, left_s))
        return self._connection.recv_into(buffer)


class _Conversation(BaseHTTPRequestHandler):
    """One connection, one request."""

    def __init__(self, service: RewardService, *connection: object) -> None:
        self.service = service
        super().__init__(*connection)  # pyright: ignore[reportArgumentType]

    server: RewardServer

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Sender(self.connection, self.service.limits))

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
            self._answer(*_refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{said}: send fewer images"))
        elif self.path != "/score":
            self._discard(int(length))
            self._answer(*_unknown(self.path))
        elif self.server.readers.acquire(timeout=self.service.limits.idle_s):
            try:
                answer = self._score(self.rfile.read(int(length)))
            finally:
                self.server.readers.release()
            self._answer(*answer)
        else:
            self._answer(*_refused(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests wait: try again later"))

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
        """Read some of what nobody wants: a sender still sending would never see the answer."""
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
