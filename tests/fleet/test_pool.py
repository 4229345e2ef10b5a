"""The pool on Ray: the bytes of one process, and what kills of workers and of the driver cost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("ray", reason="the extra ray is not installed: no fleets are tested")

from swiftmask.cli import main
from swiftmask.fleet.pool import Pool, connected, spread
from swiftmask.fleet.shards import Plan, ShardFolder, draw_shard
from swiftmask.fleet.writers import Columns, Entry
from tests.cli.conftest import tiny_scenes
from tests.fleet.short_folder import short_folder

__all__ = ["tiny_scenes"]

SHARDS, SIZE, BATCH = 6, 4, 2
NUM_IMAGES = SHARDS * SIZE
COLUMNS: list[Columns] = [{"text": "circle", "seed": index} for index in range(NUM_IMAGES)]
BEGUN = -1
ALL_ONCE = Counter(range(NUM_IMAGES))
ROOT = Path(__file__).parents[2]


class FakeWorker:
    """Generates slowly, and not at all while there is a file `hold`. Writes a line when it begins a batch,
    and one for each image that it generated: process and index.
    """

    def __init__(self, path: str, seconds: float) -> None:
        self.path, self.seconds = Path(path), seconds
        self.folder = ShardFolder(self.path / "out", "webdataset", Plan(NUM_IMAGES, SIZE))

    def __call__(self, row: dict[str, int]) -> dict[str, int]:
        return {"drawn": draw_shard(self.folder, int(row["shard"]), self.draw, batch_size=BATCH)}

    def draw(self, indices: Sequence[int]) -> list[Entry]:
        self.log([BEGUN])
        time.sleep(self.seconds)
        while (self.path / "hold").exists():
            time.sleep(0.02)
        self.log(indices)
        return [Entry(index, COLUMNS[index], f"image {index}".encode()) for index in indices]

    def log(self, indices: Sequence[int]) -> None:
        with (self.path / "log").open("a") as log:
            log.write("".join(f"{os.getpid()} {index}\n" for index in indices))


class Deadly:
    """Kills its process."""

    def __call__(self, row: dict[str, int]) -> dict[str, int]:
        os.kill(os.getpid(), signal.SIGKILL)
        return row


def run(path: Path, num_workers: int, seconds: float) -> None:
    """What a driver does."""
    path.mkdir(exist_ok=True)
    with connected(Pool(num_workers=num_workers)) as pool:
        folder = ShardFolder(path / "out", "webdataset", Plan(NUM_IMAGES, SIZE))
        folder.begin({}, COLUMNS)
        rows = [{"shard": shard} for shard in folder.missing()]
        for _ in spread(pool, rows, FakeWorker, (str(path), seconds)):
            pass
        folder.complete()


def lines(path: Path) -> list[tuple[int, int]]:
    """Processes and what they wrote: BEGUN or indices."""
    found = (path / "log").read_text().splitlines() if (path / "log").exists() else []
    return [(int(process), int(index)) for process, index in map(str.split, found)]


def logged(path: Path) -> list[int]:
    """Indices of images as often as they were generated."""
    return [index for _, index in lines(path) if index != BEGUN]


def held_after(path: Path, count: int) -> list[int]:
    """Hold the workers when so many images are generated. Two processes that are in the middle of a batch;
    all batches before are kept.
    """
    until(lambda: len(logged(path)) >= count)
    (path / "hold").touch()
    seen: list[list[tuple[int, int]]] = [[]]

    def stands_still() -> bool:
        time.sleep(1.0)  # longer than a batch takes
        seen.append(lines(path))
        return seen[-1] == seen[-2] and len(in_a_batch(path)) == 2

    until(stands_still)
    return in_a_batch(path)


def in_a_batch(path: Path) -> list[int]:
    """Living processes that began a batch and did not end it."""
    latest = dict(lines(path))
    return [process for process, index in latest.items() if index == BEGUN and alive(process)]


def alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def until(condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 240, "it does not come to this"
        time.sleep(0.02)


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name != ".lock"
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes without Ray."""
    path = tmp_path_factory.mktemp("alone")
    worker = FakeWorker(str(path), 0)
    worker.folder.begin({}, COLUMNS)
    for shard in range(SHARDS):
        worker({"shard": shard})
    worker.folder.complete()
    return contents(path / "out")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A Ray of this process with two workers, which all that connects here shares."""
    with pytest.MonkeyPatch.context() as patch, short_folder() as folder:
        patch.setenv("RAY_TMPDIR", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(Pool(num_workers=2)) as pool:
            yield pool


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A driver with a Ray of its own and two workers."""
    script = """
import sys
from pathlib import Path
from tests.fleet.test_pool import run
run(Path(sys.argv[1]), 2, 0.4)
"""
    with short_folder() as folder:
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "RAY_TMPDIR": str(folder)}
        environment.pop("RAY_ADDRESS", None)
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=environment, cwd=ROOT)
        yield process
        process.kill()


def test_a_killed_worker_and_a_killed_driver_lose_nothing(
    tmp_path: Path, started: subprocess.Popen[bytes], alone: dict[str, bytes], cluster: Pool
) -> None:
    until(lambda: len(logged(tmp_path)) >= BATCH or started.poll() is not None)
    assert started.poll() is None, "the driver did not start"
    victim = held_after(tmp_path, 2 * BATCH)[0]
    os.kill(victim, signal.SIGKILL)
    until(lambda: not alive(victim))
    before = len(logged(tmp_path))
    (tmp_path / "hold").unlink()
    workers = held_after(tmp_path, before + BATCH)
    assert victim not in workers
    started.kill()
    started.wait()
    until(lambda: not any(map(alive, workers)))  # they end with their driver
    assert len(logged(tmp_path)) < NUM_IMAGES, "it was killed too late"
    (tmp_path / "hold").unlink()
    run(tmp_path, 1, 0)
    assert Counter(logged(tmp_path)) == ALL_ONCE
    assert contents(tmp_path / "out") == alone


@pytest.mark.slow
def test_what_kills_its_worker_again_and_again_ends_the_run(
    cluster: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swiftmask.fleet.pool._RETRIES", 1)
    with pytest.raises(ChildProcessError, match="died 2 times"):
        list(spread(cluster, [{"shard": 0}], Deadly, ()))


def test_a_pool_that_would_wait_for_ever_is_refused(cluster: Pool) -> None:
    message = r"--workers 1 need 64 GPUs, and the cluster has 0"
    with pytest.raises(ValueError, match=message), connected(Pool(num_workers=1, num_gpus=64)):
        pass


SMALL = ("0", "1", "2", "--num", "3", "--steps", "2", "--shard-size", "2", "--shards", "parquet")


def generated(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *map(str, arguments)])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_two_workers_write_what_one_process_writes(
    tiny_folder: Path, tmp_path: Path, cluster: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generated(tiny_folder, *SMALL, "--out", tmp_path / "one") == 0
    fleet = ("--engine", "ray", "--workers", 2, "--out", tmp_path / "fleet", "--json")
    capsys.readouterr()
    assert generated(tiny_folder, *SMALL, *fleet) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["drawn"], summary["shards"], summary["cost"]["calls_per_picture"]["backbone"]) == (
        9,
        5,
        2,
    )
    assert contents(tmp_path / "fleet") == contents(tmp_path / "one")


@pytest.mark.slow
def test_two_workers_measure_what_one_process_measures(
    tiny_scenes: Path, tmp_path: Path, cluster: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    few = (
        "--steps",
        2,
        "--budgets",
        "4:2",
        "--baselines",
        "reuse",
        "--images",
        12,
        "--seeds",
        2,
        "--shown",
        2,
    )
    for name, engine in (("one", ()), ("fleet", ("--engine", "ray", "--workers", 2))):
        words = ("bench", tiny_scenes, *few, "--shortcut", "none", *engine, "--out", tmp_path / name)
        with pytest.raises(SystemExit) as stop:
            main([*map(str, words)])
        assert stop.value.code == 0, capsys.readouterr().err
    one, fleet = (
        {str(file.relative_to(tmp_path / name)): load_file(file) for file in _readings(tmp_path / name)}
        for name in ("one", "fleet")
    )
    assert len(one) >= 6 and sorted(fleet) == sorted(one)
    for name, tensors in one.items():
        assert all(torch.equal(fleet[name][key], tensor) for key, tensor in tensors.items()), name


def _readings(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_mistakes_of_workers_are_one_line(
    tiny_folder: Path, tmp_path: Path, cluster: Pool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generated(tiny_folder, "99", "--engine", "ray", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "99" in said[0]
    assert not (tmp_path / "out").exists()


def test_workers_need_the_engine(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generated(tiny_folder, "0", "--workers", 2) == 2
    assert "need --engine ray" in capsys.readouterr().err
