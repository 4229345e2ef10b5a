"""Replicas on Ray Serve: the same answers, and a replica that is killed under load."""

import base64
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="the extra ray is not installed: no fleets are tested")


import swiftmask
from swiftmask.cli.serve import Serve
from swiftmask.serve.replicas import Replicas
from tests.fleet.short_folder import short_folder
from tests.serving import listening

GENERATIONS = "/v1/images/generations"


@pytest.fixture(scope="module")
def url(tiny_folder: Path) -> Iterator[str]:
    """A front with two replicas, each of which is its own process."""
    command = Serve(
        model=str(tiny_folder), port=0, engine="ray", replicas=2, min_replicas=2, max_batch=2, timeout_s=60
    )
    with pytest.MonkeyPatch.context() as patch, short_folder() as folder:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        with command.opened() as server:
            with listening(server) as url:
                yield url


def asked(url: str, seed: int, **more: object) -> httpx.Response:
    wanted = {"prompt": str(seed % 7), "seed": seed, "steps": 4, **more}
    return httpx.post(url + GENERATIONS, json=wanted, timeout=120)


def test_a_replica_answers_as_the_server_does(url: str, tiny_folder: Path) -> None:
    answer = asked(url, 5)
    assert answer.status_code == 200, answer.text
    image = swiftmask.load(tiny_folder).generate([5], seeds=[5], steps=4).images[0]
    from tests.serve.conftest import pixels_of

    assert (pixels_of(answer.json()["data"][0]) == image).all()
    assert answer.headers["x-request-id"].startswith("req-")
    wrong = asked(url, 5, prompt="no such class")
    assert wrong.status_code == 400 and wrong.json()["error"]["message"]
    assert httpx.get(url + "/health").json()["status"] == "ok"
    long = httpx.post(url + GENERATIONS, content=b"x" * 17_000_000, timeout=60)
    assert long.status_code == 413


def test_a_stream_passes_through(url: str) -> None:
    wanted = {"prompt": "1", "stream": True, "partial_images": 1, "steps": 4}
    with httpx.stream("POST", url + GENERATIONS, json=wanted, timeout=120) as answer:
        events = [line for line in answer.iter_lines() if line.startswith("event: ")]
    assert events[-1] == "event: image_generation.completed"


def test_a_killed_replica_loses_no_request(url: str) -> None:
    expected = {seed: asked(url, seed).json()["data"][0]["b64_json"] for seed in range(4)}
    victims = _processes_of_replicas()
    assert len(victims) == 2
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(asked, url, seed % 4) for seed in range(60)]
        while sum(answer.done() for answer in answers) < 10:
            time.sleep(0.005)
        assert not all(answer.done() for answer in answers), "the load is over already"
        os.kill(victims[0], signal.SIGKILL)
    statuses = [answer.result().status_code for answer in answers]
    assert statuses == [200] * 60
    for seed, answer in enumerate(answers):
        assert answer.result().json()["data"][0]["b64_json"] == expected[seed % 4]
    assert base64.b64decode(expected[0]).startswith(b"\x89PNG")


def _processes_of_replicas() -> list[int]:
    import ray
    from ray.util import list_named_actors

    every: list[Any] = list_named_actors(all_namespaces=True)
    named = [each["name"] for each in every if "REPLICA" in each["name"]]
    actors = [ray.get_actor(name, namespace="serve") for name in named]
    return ray.get([actor.__ray_call__.remote(lambda _: os.getpid()) for actor in actors])


def test_numbers_of_replicas() -> None:
    with pytest.raises(ValueError, match="--min-replicas is from 1 to --replicas"):
        Replicas(most=1, fewest=2)
