"""A reward behind a real server on this machine: what arrives, what is refused, what is tried again."""

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO

import pytest
import torch
from PIL import Image
from torch import Tensor

from swiftmask.rewards import http_client
from swiftmask.rewards.http_client import HttpReward, to_pngs
from swiftmask.serve.errors import RequestError
from swiftmask.serve.limits import BodyReader, Limits
from swiftmask.serve.listening import BACKLOG, ListeningServer
from swiftmask.serve.rewards import Reward, RewardService, make_server


@contextmanager
def running(server: HTTPServer | ListeningServer) -> Iterator[str]:
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        while isinstance(server, ListeningServer) and not server.started:
            threading.Event().wait(0.005)  # time.sleep is what some tests watch
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def serving(reward: Reward, limits: Limits | None = None, **service: int) -> "contextmanager[str]":
    made = RewardService(reward=reward, name="brightness", limits=limits or Limits(), **service)
    return running(make_server(made))


@pytest.fixture(scope="module")
def own_reward() -> Iterator[tuple[str, list[Reward]]]:
    """A server of at most three images a request, and the reward that it calls, which a test may change."""
    reward: list[Reward] = [brightness]
    with serving(lambda images, prompts: reward[0](images, prompts), max_images=3) as url:
        yield url, reward


def impatient(url: str, **settings: float) -> HttpReward:
    return HttpReward(**{"url": url, "first_wait_s": 0.0, **settings})  # pyright: ignore


def brightness(images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
    return images_B3HW.mean(dim=(1, 2, 3)) + torch.tensor([float(len(prompt)) for prompt in prompts])


def pictures(batch: int, height: int = 6, width: int = 4) -> Tensor:
    levels = torch.randint(256, (batch, 3, height, width), generator=torch.Generator().manual_seed(0))
    return levels / 255


def image_text() -> str:
    return base64.b64encode(to_pngs(pictures(1))[0]).decode()


def request_text(**changed: object) -> bytes:
    return json.dumps({"images": [image_text()], "prompts": ["a"], **changed}).encode()


def post(url: str, body: bytes, path: str = "/score") -> tuple[int, str]:
    """Status and error line."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.request("POST", path, body)
    response = connection.getresponse()
    status, content = response.status, json.loads(response.read())
    connection.close()
    return status, content.get("error", "")


def test_scores_come_in_order_and_in_batches() -> None:
    seen: list[Tensor] = []

    def reward(images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        seen.append(images_B3HW)
        return brightness(images_B3HW, prompts)

    images_B3HW, prompts = pictures(5), ["", "a", "bb", "ccc", "ü"]
    with serving(reward) as url:
        scores_B = HttpReward(url=f"{url}/", batch_size=2)(images_B3HW, prompts)
        assert HttpReward(url=url)(images_B3HW[:0], []).shape == (0,)
    torch.testing.assert_close(scores_B, brightness(images_B3HW, prompts))
    assert [len(batch) for batch in seen] == [2, 2, 1]
    assert torch.equal(torch.cat(seen), images_B3HW), "8-bit images travel without loss"


def test_images_are_rounded_and_cut_and_carry_no_gradient() -> None:
    images_B3HW = torch.tensor([-0.5, 0.301, 2.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2).bfloat16()
    with serving(lambda images_B3HW, prompts: images_B3HW[:, 0, 0, 0]) as url:
        scores_B = HttpReward(url=url)(images_B3HW.clone().requires_grad_(), ["a"] * 3)
    torch.testing.assert_close(scores_B, torch.tensor([0.0, 77 / 255, 1.0]))
    assert scores_B.dtype == torch.float32 and not scores_B.requires_grad


def test_rewards_may_answer_lists_and_leave_images_out() -> None:
    with serving(lambda images, prompts: [None, float("nan"), 2]) as url:
        scores_B = HttpReward(url=url)(pictures(3), ["a"] * 3)
    assert scores_B.isnan().tolist() == [True, True, False]
    assert scores_B[2] == 2


def test_health() -> None:
    with serving(brightness) as url:
        assert HttpReward(url=url).health() == "brightness"


def test_a_passing_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(http_client.time, "sleep", waits.append)
    calls: list[int] = []

    def recovering(images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        calls.append(len(prompts))
        if len(calls) < 4:
            raise RuntimeError("out of memory\nand more")
        return brightness(images_B3HW, prompts)

    with serving(recovering) as url:
        scores_B = HttpReward(url=url, num_attempts=4, first_wait_s=0.5)(pictures(2), ["a", "b"])
    torch.testing.assert_close(scores_B, brightness(pictures(2), ["a", "b"]))
    assert calls == [2, 2, 2, 2]
    assert waits == [0.5, 1.0, 2.0]


def test_a_lasting_failure_is_one_clear_line() -> None:
    def broken(images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        raise RuntimeError("out of memory")

    said = r"no answer from .* in 2 attempts \(last: 500 the reward failed \(RuntimeError: out of memory\)\)"
    with serving(broken) as url, pytest.raises(ConnectionError, match=said):
        impatient(url, num_attempts=2)(pictures(1), ["a"])


def test_a_server_that_is_not_there() -> None:
    with serving(brightness) as url:
        pass
    with pytest.raises(
        ConnectionError, match=r"in 3 attempts .*refused.*is it running \(swiftmask serve-rew"
    ):
        impatient(url, num_attempts=3).health()


def test_a_silent_server_times_out() -> None:
    finish = threading.Event()

    def slow(images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        finish.wait(30)
        return brightness(images_B3HW, prompts)

    with serving(slow) as url:
        try:
            with pytest.raises(ConnectionError, match="timed out"):
                impatient(url, num_attempts=1, timeout_s=0.2)(pictures(1), ["a"])
        finally:
            finish.set()


def test_what_the_reward_calls_wrong_is_not_tried_again() -> None:
    calls: list[int] = []

    def picky(images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        calls.append(1)
        raise ValueError("cannot read the prompt 'a'\nat all")

    with (
        serving(picky) as url,
        pytest.raises(ValueError, match="refuses .*/score: 400 cannot read the prompt 'a'$"),
    ):
        impatient(url)(pictures(1), ["a"])
    assert calls == [1]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda images, prompts: [1.0, 2.0], "RuntimeError: expected 1 scores, got 2"),
        (lambda images, prompts: torch.tensor([torch.inf]), "RuntimeError: a score is infinite"),
        (lambda images, prompts: torch.zeros(1, 1), "TypeError"),
        (lambda images, prompts: None, "TypeError"),
    ],
)
def test_wrong_scores_are_the_rewards_failure(
    scores: Reward, message: str, own_reward: tuple[str, list[Reward]]
) -> None:
    url, reward = own_reward
    reward[0] = scores
    status, said = post(url, request_text())
    assert status == 500 and message in said and "\n" not in said


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is no JSON"),
        (b"\xff\xfe", "the body is no JSON"),
        (b"[" * 100_000, "the body is no JSON"),
        (b"[]", "'images' is no list of texts"),
        (request_text(images="abc"), "'images' is no list of texts"),
        (request_text(prompts=[1]), "'prompts' is no list of texts"),
        (request_text(prompts=[]), "got 1 images and 0 prompts"),
        (request_text(images=[], prompts=[]), "at least one, got 0 images and 0 prompts"),
        (request_text(images=["%"]), "image 0 is no PNG in base64"),
        (request_text(images=["aGVsbG8="]), "image 0 is no PNG in base64"),
        (request_text(images=[image_text()[:80]]), "image 0 is no PNG in base64"),
        (request_text(images=[image_text()] * 4, prompts=["a"] * 4), "at most 3 images a request, got 4"),
    ],
)
def test_bad_requests_get_400_and_one_line(
    body: bytes, message: str, own_reward: tuple[str, list[Reward]]
) -> None:
    url, reward = own_reward
    reward[0] = brightness
    status, said = post(url, body)
    assert HttpReward(url=url)(pictures(1), ["a"]).isfinite().all(), "the server lives on"
    assert status == 400 and message in said and "\n" not in said


def test_images_of_one_request_need_one_size() -> None:
    images = [base64.b64encode(to_pngs(pictures(1, size, size))[0]).decode() for size in (2, 3)]
    with serving(brightness) as url:
        assert post(url, request_text(images=images, prompts=["a", "b"])) == (
            400,
            "images of one request need one size, got [(2, 2), (3, 3)]",
        )


def test_limits_of_a_request() -> None:
    with serving(brightness, Limits(num_bytes=1000), max_pixels=100) as url:
        assert post(url, b" " * 3000) == (
            413,
            "the body has 3000 bytes, at most 1000 are read: send less",
        )
        large = base64.b64encode(to_pngs(torch.zeros(1, 3, 11, 10))[0]).decode()
        status, said = post(url, request_text(images=[large]))
        assert status == 400 and said.startswith("image 0 has more than 100 pixels")
        fitting = base64.b64encode(to_pngs(torch.zeros(1, 3, 10, 10))[0]).decode()
        assert post(url, request_text(images=[fitting]))[0] == 200
        both = request_text(images=[fitting] * 2, prompts=["a", "b"])
        assert "more than 50 pixels" in post(url, both)[1], "the limit is of all images together"


def test_other_paths_and_bodies_without_length() -> None:
    with serving(brightness) as url:
        assert post(url, b"{}", "/")[0] == 404
        with pytest.raises(
            ValueError, match="404 there is POST /score and GET /health, not '/nowhere/health'"
        ):
            impatient(f"{url}/nowhere").health()
        connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.putrequest("POST", "/score")
        connection.endheaders()
        assert connection.getresponse().status == 411
        connection.close()


def test_a_sender_that_falls_silent_is_dropped() -> None:
    with serving(brightness, Limits(idle_s=0.1)) as url:
        connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.putrequest("POST", "/score")
        connection.putheader("Content-Length", "10")
        connection.endheaders(b"half")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("connection")) == (408, "close")
        connection.close()


def test_a_sender_that_dribbles_is_dropped_at_the_deadline() -> None:
    with serving(brightness, Limits(idle_s=5, deadline_s=0.3)) as url:
        address = url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), timeout=30) as connection:
            connection.sendall(b"POST /score HTTP/1.0\r\nContent-Length: 100000\r\n\r\n")
            started = time.monotonic()
            with suppress(ConnectionError):
                while time.monotonic() - started < 20:
                    connection.sendall(b" ")
                    time.sleep(0.05)
            assert time.monotonic() - started < 10, "never silent, and still dropped"
        assert HttpReward(url=url)(pictures(1), ["a"]).isfinite().all(), "the server lives on"


def test_the_deadline_holds_however_fast_bytes_come() -> None:
    """Bytes that are there whenever the deadline strikes, many times over: it is a race."""
    started = time.monotonic()

    async def receive() -> dict[str, object]:
        assert time.monotonic() - started < 10, "the deadline was lost"
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def dropped(reader: BodyReader) -> int:
        with pytest.raises(RequestError) as told:
            async with reader.body({"content-length": "100000000"}, receive):
                pass
        return told.value.status

    limits = Limits(num_bytes=100_000_000, deadline_s=0.02)
    with ThreadPoolExecutor(1) as thread:  # this one may have an event loop of a browser
        for _ in range(10):
            assert thread.submit(lambda: asyncio.run(dropped(BodyReader(limits)))).result() == 408


def test_few_requests_are_read_at_once_and_the_others_are_told() -> None:
    limits = Limits(num_readers=1, idle_s=0.3, deadline_s=30)
    with serving(brightness, limits) as url:
        holder = HTTPConnection(url.removeprefix("http://"), timeout=30)
        holder.putrequest("POST", "/score")
        holder.putheader("Content-Length", "10")
        holder.endheaders(b"h")
        dribble = threading.Event()

        def keep_sending() -> None:
            while not dribble.wait(0.1):
                with suppress(OSError):
                    holder.send(b" ")

        sender = threading.Thread(target=keep_sending)
        sender.start()
        try:
            assert post(url, request_text()) == (503, "too many requests wait: try again later")
        finally:
            dribble.set()
            sender.join()
            holder.close()


def test_connections_beyond_the_limit_are_told_to_come_again() -> None:
    with serving(brightness, Limits(num_connections=1, idle_s=5)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30):
            time.sleep(0.1)
            with socket.create_connection((host, int(port)), timeout=30) as second:
                assert second.recv(100).startswith(b"HTTP/1.1 503")


def test_a_small_file_of_many_pixels_is_refused_before_it_is_unpacked() -> None:
    file = BytesIO()
    Image.new("1", (8000, 8000)).save(file, "PNG")
    bomb = base64.b64encode(file.getvalue()).decode()
    assert len(bomb) < 200_000
    with serving(brightness) as url:
        status, said = post(url, request_text(images=[bomb]))
    assert status == 400 and "more than 16777216 pixels" in said


def test_an_empty_host_is_refused() -> None:
    for host in ("", " "):
        with pytest.raises(ValueError, match=r"the host is empty.*0\.0\.0\.0"):
            make_server(RewardService(reward=brightness, name="x"), host=host)


def test_many_may_knock_at_once() -> None:
    assert BACKLOG >= 128


def test_the_reward_is_called_by_one_thread_at_a_time() -> None:
    inside, most = [], []

    def watched(images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        assert not torch.is_grad_enabled()
        return brightness(images_B3HW, prompts)

    with serving(watched) as url:
        askers = [
            threading.Thread(target=HttpReward(url=url), args=(pictures(1), ["a"]), daemon=True)
            for _ in range(4)
        ]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    assert most == [1, 1, 1, 1]


class Babble(BaseHTTPRequestHandler):
    """A server of something else."""

    answer = b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    "answer",
    [
        b'{"scores": [1]}',
        b'{"scores": [1, "2"]}',
        b'{"scores": [1, Infinity]}',
        b'{"scores": [1, true]}',
        b"[1, 2]",
    ],
)
def test_answers_without_scores_are_refused(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Babble, "answer", answer)
    with (
        running(HTTPServer(("127.0.0.1", 0), Babble)) as url,
        pytest.raises(ValueError, match=r"must answer 2 finite scores, got .*1"),
    ):
        impatient(url)(pictures(2), ["a", "b"])


def test_other_servers_are_no_reward_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(HTTPServer(("127.0.0.1", 0), Babble)) as url:
        monkeypatch.setattr(Babble, "answer", b"<html>")
        with pytest.raises(ValueError, match="/health answered no JSON: b'<html>'"):
            impatient(url).health()
        monkeypatch.setattr(Babble, "answer", b'{"status": "ok"}')
        with pytest.raises(ValueError, match="is no reward server: /health answered"):
            impatient(url).health()


def test_a_port_that_is_taken() -> None:
    with make_server(RewardService(reward=brightness, name="x")) as server:
        with pytest.raises(
            ValueError, match=rf"cannot listen on 127\.0\.0\.1:{server.server_port} .*choose another"
        ):
            make_server(RewardService(reward=brightness, name="x"), port=server.server_port)
    with pytest.raises(ValueError, match="cannot listen on .*:70000"):
        make_server(RewardService(reward=brightness, name="x"), port=70_000)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:80", "file:///etc/hosts", "http://", "http://host:port", "http://["]
)
def test_wrong_addresses(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected a reward server such as http://127\.0\.0\.1:8765, got"):
        HttpReward(url=url)


def test_wrong_settings_and_input() -> None:
    for setting in ({"batch_size": 0}, {"num_attempts": 0}, {"timeout_s": 0}, {"first_wait_s": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))} must be a"):
            impatient("http://host", **setting)
    with pytest.raises(ValueError, match="got 2 images and 1 prompts"):
        impatient("http://host")(pictures(2), ["a"])
