"""A real server on this machine: OpenAI's client, clients that go away, limits, and the end by SIGTERM."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

import swiftmask
from swiftmask.cli import main
from swiftmask.serve.app import ServeSettings, image_app
from swiftmask.serve.batches import BatchLimits
from swiftmask.serve.catalogue import Catalogue
from swiftmask.serve.limits import Limits
from swiftmask.serve.listening import ListeningServer, bound_socket
from tests.serving import listening

from .conftest import file_of, pixels_of

GENERATIONS = "/v1/images/generations"


@contextmanager
def serving(catalogue: Catalogue, settings: ServeSettings) -> Iterator[str]:
    with ListeningServer(
        image_app(catalogue, settings), bound_socket(), limits=settings.limits, grace_s=5
    ) as server:
        with listening(server) as url:
            yield url


SETTINGS = ServeSettings(
    limits=Limits(idle_s=0.4, deadline_s=0.8, num_connections=8, num_bytes=100_000),
    batches=BatchLimits(max_batch=4, max_wait_s=0.0, max_queue=4),
    api_key="sk-test",
)


@pytest.fixture(scope="module")
def url(tiny_catalogue: Catalogue) -> Iterator[str]:
    with serving(tiny_catalogue, SETTINGS) as url:
        yield url


def test_openais_client(url: str, tiny_pipeline: swiftmask.Pipeline) -> None:
    """Images, a stream with partial images, an edit, the models, and errors as its exceptions."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0)
    answer = client.images.generate(
        prompt="3", model="tiny", n=2, response_format="b64_json", extra_body={"seed": 5, "steps": 3}
    )
    assert answer.data is not None and answer.model_extra is not None
    expected = tiny_pipeline.generate([3, 3], seeds=[5, 6], steps=3).images
    for entry, image in zip(answer.data, expected, strict=True):
        assert np.array_equal(pixels_of({"b64_json": entry.b64_json or ""}), np.array(image))
    assert answer.model_extra["cost"]["calls_per_image"]["backbone"] == 3
    stream = client.images.generate(
        prompt="3", stream=True, partial_images=2, extra_body={"seed": 5, "steps": 4}
    )
    kinds = [event.type for event in stream]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    mask_HW = np.zeros((8, 8), np.uint8)
    mask_HW[:4] = 255
    edited = client.images.edit(
        image=("a.png", file_of(expected[0])),
        mask=("b.png", file_of(Image.fromarray(mask_HW))),
        prompt="5",
        extra_body={"steps": 3, "seed": 2**64 - 1},
    )
    assert edited.data is not None
    after = pixels_of({"b64_json": edited.data[0].b64_json or ""})
    assert np.array_equal(after[4:], np.array(expected[0])[4:])
    assert [model.id for model in client.models.list()] == ["tiny", "tiny+shortcut", "tiny+reuse"]
    with pytest.raises(openai.BadRequestError, match="unknown class"):
        client.images.generate(prompt="nonsense")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-wrong").images.generate(prompt="3")


def test_only_health_is_open(url: str) -> None:
    assert httpx.get(f"{url}/health").status_code == 200
    for path in ("/metrics", "/v1/models", "/nowhere"):
        assert httpx.get(url + path).status_code == 401
        assert httpx.get(url + path, headers={"authorization": "Bearer sk-tesu"}).status_code == 401
    known = {"authorization": "Bearer sk-test"}
    assert httpx.get(f"{url}/metrics", headers=known).status_code == 200


def raw(url: str, content: bytes, *, wait_s: float = 10) -> bytes:
    """All that the server says to some bytes, until it hangs up."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=wait_s) as connection:
        connection.sendall(content)
        said = b""
        with suppress(ConnectionError):
            while piece := connection.recv(4096):
                said += piece
    return said


HEAD = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-test\r\n"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n" + b"a: " + b"b" * 40_000 + b"\r\n\r\n", b"400"),
        (HEAD + b"\r\n", b"411"),
        (HEAD + b"Content-Length: 9\r\n\r\nhalf", b"408"),
        (HEAD + b"Content-Length: 100001\r\n\r\n" + b"x" * 100_001, b"413"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n18710\r\n" + b"x" * 0x18710 + b"\r\n0\r\n\r\n", b"413"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
    ],
)
def test_what_is_no_request(content: bytes, status: bytes, url: str) -> None:
    said = raw(url, content)
    assert said.startswith(b"HTTP/1.1 " + status), said[:200]


@pytest.mark.parametrize("content", [b"", b"GET /health HTT", HEAD])
def test_a_client_that_never_finishes_its_head_is_dropped(content: bytes, url: str) -> None:
    started = time.monotonic()
    assert raw(url, content) == b""
    assert time.monotonic() - started < 5


def test_connections_above_the_limit_are_told_to_come_again(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(8)]
    try:
        time.sleep(0.05)
        assert raw(url, b"").startswith(b"HTTP/1.1 503")
    finally:
        for connection in idle:
            connection.close()


def slow(catalogue: Catalogue, seconds: float) -> tuple[Catalogue, list[int]]:
    """The catalogue with a backbone that takes so long a step, and the steps it has begun."""
    begun: list[int] = []

    class Slow:
        name, settings = "backbone", ()

        def __init__(self) -> None:
            self.model = catalogue.base.model

        def __call__(self, canvas, condition, step, previous):
            from swiftmask.core.types import Features

            if canvas.tokens_BL.device.type != "meta":
                begun.append(step.index)
                time.sleep(seconds)
            return Features(self.model.features(canvas, condition))

    base = catalogue.variants["tiny"]
    pipeline = replace(base.pipeline, features_fn=Slow())
    variants = {"tiny": replace(base, pipeline=pipeline)}
    return Catalogue(catalogue.base, variants), begun


def test_clients_that_go_away_late_answers_and_a_full_queue(tiny_catalogue: Catalogue) -> None:
    catalogue, begun = slow(tiny_catalogue, 0.1)
    settings = ServeSettings(
        batches=BatchLimits(max_batch=1, max_wait_s=0.0, max_queue=1), timeout_s=1.2, limits=Limits()
    )
    body = {"prompt": "3", "steps": 15}
    with serving(catalogue, settings) as url:
        time.sleep(0.05)
        begun.clear()
        with pytest.raises(httpx.TimeoutException):
            httpx.post(url + GENERATIONS, json=body, timeout=0.3)
        time.sleep(0.3)
        stopped = len(begun)
        assert 0 < stopped < 15
        time.sleep(0.3)
        assert len(begun) == stopped, "the next step stops"
        answer = httpx.post(url + GENERATIONS, json=body, timeout=10)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        streamed = httpx.post(url + GENERATIONS, json={**body, "stream": True}, timeout=10)
        assert "event: error" in streamed.text and '"code": "timeout"' in streamed.text
        askers = [threading.Thread(target=lambda: httpx.post(url + GENERATIONS, json=body, timeout=10))]
        answers: list[httpx.Response] = []
        for _ in range(3):
            askers.append(
                threading.Thread(
                    target=lambda: answers.append(httpx.post(url + GENERATIONS, json=body, timeout=10))
                )
            )
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        full = [answer for answer in answers if answer.status_code == 429]
        assert full and int(full[0].headers["retry-after"]) >= 1
        assert full[0].json()["error"]["type"] == "rate_limit_error"


def test_sigterm_finishes_what_runs(tiny_folder: Path, tmp_path: Path) -> None:
    """Two terminals: `swiftmask serve` and a client, whose answer comes after the signal."""
    command = [sys.executable, "-m", "swiftmask", "serve", str(tiny_folder), "--port", "0", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stderr is not None and process.stdout is not None
        lines = iter(process.stderr.readline, "")
        url = next(line.split()[0] for line in lines if line.startswith("http")).removesuffix("/v1")
        body = {"prompt": "3", "steps": 15, "n": 16, "seed": 1}
        got: list[httpx.Response] = []
        asker = threading.Thread(
            target=lambda: got.append(httpx.post(url + GENERATIONS, json=body, timeout=60))
        )
        asker.start()
        while httpx.get(f"{url}/health").json()["running_images"] == 0:
            assert asker.is_alive()
        process.send_signal(signal.SIGTERM)
        asker.join()
        assert process.wait(timeout=30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
    finally:
        process.kill()
    assert got[0].status_code == 200 and len(got[0].json()["data"]) == 16
    requests = [json.loads(line) for line in process.stdout if GENERATIONS in line]
    assert [(line["status"], line["images"]) for line in requests] == [(200, 16)]
    assert base64.b64decode(got[0].json()["data"][0]["b64_json"]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nonsense"], "unknown model 'nonsense'"),
        (["maskgit-scenes", "--host", " "], "--host is empty, which listens on every address"),
        (["maskgit-scenes", "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid:8000"),
        (["maskgit-scenes", "--api-key-file", "nowhere"], "no such file of an API key: nowhere"),
        (["maskgit-scenes", "--preset", "nowhere.json"], "no such preset: nowhere.json"),
        (["maskgit-scenes", "--marval", "auto", "--port", "0"], "maskgit-scenes has no marval of its own"),
        (["maskgit-scenes", "--max-batch", "0"], "--max-batch must be a whole number between 1 and"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["serve", *arguments])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and complaint in said
    assert len(said.strip().splitlines()) == 1, said


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(SystemExit) as stop:
        main(["serve", "maskgit-scenes"])
    assert stop.value.code == 2
    assert "pip install 'swiftmask[serve]'" in capsys.readouterr().err
