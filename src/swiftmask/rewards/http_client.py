"""A reward that another process computes, asked over HTTP.

Packages of rewards pin versions that conflict with each other and with ours (ImageReward needs an old
transformers); a server of its own keeps each apart. The protocol is two requests:

    GET  /health  ->  {"status": "ok", "reward": NAME}
    POST /score   {"images": [PNG in base64, ...], "prompts": [...]}  ->  {"scores": [number or null, ...]}

An error is any other status with `{"error": one line}`. Null: the reward does not apply to that image.
Images travel as 8-bit PNGs, so no gradient flows back.
"""

import base64
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast
from urllib.parse import urlsplit

import torch
from PIL import Image
from torch import Tensor

from swiftmask.core.optional import library
from swiftmask.core.ranges import check_fields
from swiftmask.core.settings import first_line
from swiftmask.data.images.pixels import to_pil
from swiftmask.rewards.clip import check_images

_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""What a busy or restarting server answers; every other refusal would only be repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpReward:
    """Scores of a reward server.

    Attributes:
        url: such as http://127.0.0.1:8765, without the path of a request.
        batch_size: images a request; servers limit it.
        timeout_s: seconds that one request may be silent.
        num_attempts: how often a request is sent before giving up.
        first_wait_s: seconds before the second attempt; each further wait is twice as long.
    """

    url: str
    batch_size: int = 8
    timeout_s: float = 120.0
    num_attempts: int = 5
    first_wait_s: float = 1.0

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            raise ValueError(f"expected a reward server such as http://127.0.0.1:8765, got {self.url!r}")
        check_fields(self)

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """`scores_B`, float32, on the device of the images, without gradient; NaN where it does not apply.

        Args:
            images_B3HW: in [0, 1]; rounded to bytes.
            prompts: one per image.

        Errors: ValueError if the server refuses or answers nonsense; ConnectionError if no attempt got an
        answer.
        """
        check_images(images_B3HW, prompts)
        scores: list[float] = []
        for start in range(0, len(prompts), self.batch_size):
            batch = slice(start, start + self.batch_size)
            scores += self._score(images_B3HW[batch], prompts[batch])
        return torch.tensor(scores, dtype=torch.float32, device=images_B3HW.device)

    def health(self) -> str:
        """Name of the reward that the server has. Errors: as `__call__`."""
        answer = self._ask("/health", None)
        if not isinstance(answer, dict) or not isinstance(answer.get("reward"), str):
            raise ValueError(f"{self.url} is no reward server: /health answered {_short(answer)}")
        return answer["reward"]

    def _score(self, images_B3HW: Tensor, prompts: Sequence[str]) -> list[float]:
        pictures = [base64.b64encode(png).decode() for png in to_pngs(images_B3HW)]
        body = json.dumps({"images": pictures, "prompts": list(prompts)}).encode()
        answer = self._ask("/score", body)
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or len(scores) != len(prompts) or not all(map(_is_score, scores)):
            raise ValueError(f"{self.url} must answer {len(prompts)} finite scores, got {_short(answer)}")
        return [math.nan if score is None else float(score) for score in cast(list[float | None], scores)]

    def _ask(self, path: str, body: bytes | None) -> object:
        """The answer, after as many attempts as it takes and is allowed."""
        url = self.url.rstrip("/") + path
        failures: list[_PassingError] = []
        while len(failures) < self.num_attempts:
            if failures:
                time.sleep(self.first_wait_s * 2 ** (len(failures) - 1))
            try:
                return _exchange(url, body, self.timeout_s)
            except _PassingError as error:
                failures.append(error)
        raise ConnectionError(
            f"no answer from the reward server {self.url} in {self.num_attempts} attempts (last: "
            f"{failures[-1]}): is it running (swiftmask serve-reward)?"
        ) from failures[-1]


class _PassingError(Exception):
    """What may be over a moment later."""


def to_pngs(images_B3HW: Tensor) -> list[bytes]:
    """Images in [0, 1] as 8-bit PNG files, lightly compressed."""
    return [_to_png(image) for image in to_pil(images_B3HW)]


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _to_png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _exchange(url: str, body: bytes | None, timeout_s: float) -> object:
    """One request. Errors: `_PassingError` if another attempt may help, else ValueError."""
    httpx = library("httpx", "a reward server")
    try:
        # Reward servers stand in one's own network; the proxy of the environment leads out of it.
        with httpx.Client(trust_env=False, timeout=timeout_s) as client:
            response = client.request(
                "GET" if body is None else "POST",
                url,
                content=body,
                headers={"content-type": "application/json"},
            )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _PassingError(first_line(error)) from error
    if response.status_code >= 300:
        said = f"{response.status_code} {_complaint(response)}"
        if response.status_code in _PASSING:
            raise _PassingError(said)
        raise ValueError(f"the reward server refuses {url}: {said}")
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{url} answered no JSON: {_short(response.content)}") from error


def _complaint(response: Any) -> str:
    """The server's line, or what the status means."""
    try:
        content = json.loads(response.content)
    except (ValueError, RecursionError):
        content = None
    said = content.get("error") if isinstance(content, dict) else None
    return " ".join(said.split()) if isinstance(said, str) else response.reason_phrase


def _is_score(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value is None or number


def _short(answer: object) -> str:
    return repr(answer)[:200]
