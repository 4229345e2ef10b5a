"""Load on `swiftmask serve` over loopback: throughput, latency, memory, broken requests, kill -9.

    python benchmarks/serve.py                       # all parts, into benchmarks/results/serve.json
    python benchmarks/serve.py --only throughput latency

Throughput and latency are of maskgit-scenes; memory and broken requests of an untrained model of 16 tokens,
which answers fast enough for thousands of requests. Server and clients share the machine. `--table` prints
the table of docs/serving.md from the result file.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch

import swiftmask
from swiftmask.core.writing import write_text
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.network import Transformer, TransformerConfig

RESULTS = Path(__file__).parent / "results" / "serve.json"
GENERATIONS = "/v1/images/generations"
BATCH, STEPS, ROUNDS, ROUND_S = 8, 4, 3, 20.0
WANTED = {
    "server throughput / pipeline throughput, 16 steps": ">= 0.95",
    "the same, 4 steps": ">= 0.95",
    "share of the time that the model's thread decodes, 4 steps": "",
    "memory after 5,000 requests / after 500": "<= 1.05",
    "500 broken requests answered 500 or worse": "0",
    "requests lost or answered twice": "0",
    "answers after kill -9 and a new start": "yes",
}


@contextmanager
def server(model: str | Path, *options: str, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own: its address, and the process."""
    command = [
        sys.executable,
        "-m",
        "swiftmask",
        "serve",
        str(model),
        "--port",
        str(port),
        "--device",
        "cpu",
        *options,
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert process.stderr is not None
    try:
        line = next((line for line in process.stderr if line.startswith("http")), None)
        if line is None:
            raise RuntimeError(f"the server did not start: {' '.join(command)}")
        yield line.split()[0].removesuffix("/v1"), process
    finally:
        process.terminate()
        process.wait(timeout=120)


def untrained(folder: Path) -> Path:
    """A MaskGIT of 4x4 tokens and 8x8 pixels."""
    torch.manual_seed(0)
    sizes = TransformerConfig(
        width=32, depth=2, num_heads=2, mlp_width=64, codebook_size=32, num_classes=8, grid=4
    )
    codec = VQGANConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8, z_channels=8,
        n_embed=32, embed_dim=8,
    )  # fmt: skip
    MaskGIT(Transformer(sizes), VQGAN(codec)).save_pretrained(folder / "untrained", provenance={})
    return folder / "untrained"


async def load(
    url: str, *, clients: int, seconds: float = 1e9, requests: int = 10**9, body: dict[str, Any]
) -> tuple[list[float], list[int], float]:
    """Clients that ask again as soon as they are answered.

    Returns seconds of each request, the seed of every image that was answered, and seconds in all.
    """
    left, taken, seeds = requests, [], []
    ends = time.perf_counter() + seconds

    async def one(client: httpx.AsyncClient) -> None:
        nonlocal left
        while left > 0 and time.perf_counter() < ends:
            left -= 1
            seed = requests - left
            started = time.perf_counter()
            answer = await client.post(url + GENERATIONS, json={**body, "seed": seed})
            taken.append(time.perf_counter() - started)
            assert answer.status_code == 200, answer.text
            seeds.extend(entry["seed"] for entry in answer.json()["data"])

    started = time.perf_counter()
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=120, trust_env=False, limits=limits) as client:
        await asyncio.gather(*(one(client) for _ in range(clients)))
    return taken, seeds, time.perf_counter() - started


BODY = {"prompt": "red circle", "steps": STEPS}


def throughput(steps: int = STEPS, round_s: float = ROUND_S) -> dict[str, float]:
    """Images a second of the pipeline alone and of the server, by turns at the same batch size."""
    pipeline = swiftmask.load("maskgit-scenes", device="cpu")
    bare, served, busy, body = [], [], [], BODY | {"steps": steps}
    with server("maskgit-scenes", "--max-batch", str(BATCH)) as (url, _):
        asyncio.run(load(url, clients=BATCH, seconds=3, body=BODY))
        pipeline.generate(["red circle"] * BATCH, steps=steps)
        for _ in range(ROUNDS):
            started, count = time.perf_counter(), 0
            while time.perf_counter() - started < round_s:
                pipeline.generate(["red circle"] * BATCH, steps=steps, seeds=range(count, count + BATCH))
                count += BATCH
            bare.append(count / (time.perf_counter() - started))
            decoding = _decoding_seconds(url)
            taken, _, seconds = asyncio.run(load(url, clients=2 * BATCH, seconds=round_s, body=body))
            busy.append((_decoding_seconds(url) - decoding) / seconds)
            served.append(len(taken) / seconds)
    ratios = [a / b for a, b in zip(served, bare, strict=True)]
    return {
        "pipeline_images_per_s": round(statistics.median(bare), 3),
        "server_images_per_s": round(statistics.median(served), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "decoding_share": round(statistics.median(busy), 3),
    }


def _decoding_seconds(url: str) -> float:
    """Seconds that the model's thread has spent on batches since the server began."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("swiftmask_batch_seconds_sum")))


def latency() -> list[dict[str, float]]:
    """Median and 95th percentile at 1, 8 and 32 clients."""
    rows = []
    with server("maskgit-scenes", "--max-batch", str(BATCH)) as (url, _):
        asyncio.run(load(url, clients=BATCH, seconds=3, body=BODY))
        for clients in (1, 8, 32):
            taken, _, seconds = asyncio.run(load(url, clients=clients, seconds=20, body=BODY))
            twenty = statistics.quantiles(taken, n=20)
            rows.append(
                {
                    "clients": clients,
                    "requests": len(taken),
                    "p50_ms": round(1000 * statistics.median(taken), 1),
                    "p95_ms": round(1000 * twenty[18], 1),
                    "images_per_s": round(len(taken) / seconds, 2),
                }
            )
    return rows


def memory() -> dict[str, Any]:
    """Resident memory of the server over 5,000 requests, and whether each was answered once."""
    with tempfile.TemporaryDirectory() as folder:
        with server(untrained(Path(folder))) as (url, process):
            body, sizes, lost = {"prompt": "3", "steps": 2}, [], 0
            for _ in range(10):
                _, seeds, _ = asyncio.run(load(url, clients=16, requests=500, body=body))
                lost += sorted(seeds) != list(range(1, 501))
                sizes.append(_resident_mb(process.pid))
    return {"requests": 5000, "rss_mb": sizes, "ratio": round(sizes[-1] / sizes[0], 4), "lost_or_twice": lost}


def broken(count: int = 500) -> dict[str, Any]:
    """Random broken and hostile requests: what they were answered, and whether the server lives on."""
    chosen = random.Random(0)
    answered: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        options = ("--max-megabytes", "1", "--timeout-s", "4")
        with server(untrained(Path(folder)), *options) as (url, process):
            for _ in range(count):
                said = _said(url, *_hostile(chosen))
                status = said[9:12].decode() if said.startswith(b"HTTP/1.1 ") else "closed"
                answered[status] = answered.get(status, 0) + 1
            healthy = httpx.get(f"{url}/health").status_code == 200 and process.poll() is None
    worse = sum(number for status, number in answered.items() if status.startswith("5") and status != "503")
    return {"requests": count, "answered": dict(sorted(answered.items())), "worse": worse, "alive": healthy}


def killed() -> dict[str, Any]:
    """kill -9 under load, then a new start on the same port."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        model = untrained(Path(folder))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        with server(model, port=port) as (url, process):
            with suppress(httpx.HTTPError):
                asyncio.run(_kill_under_load(url, process))
        started = time.perf_counter()
        with server(model, port=port) as (url, _):
            seconds = time.perf_counter() - started
            answer = httpx.post(url + GENERATIONS, json={"prompt": "3", "steps": 2}, timeout=30)
    return {"answers": answer.status_code == 200, "start_s": round(seconds, 1)}


async def _kill_under_load(url: str, process: subprocess.Popen[str]) -> None:
    asyncio.get_running_loop().call_later(1.0, process.send_signal, signal.SIGKILL)
    await load(url, clients=8, seconds=10, body={"prompt": "3", "steps": 2})


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024, 1)


def _hostile(chosen: random.Random) -> tuple[bytes, bool]:
    """A request that is broken in one of many ways, and whether its sender hangs up behind it."""
    values: Sequence[Any] = (
        None, True, -1, 0, 2**70, 1e308, "", "x" * 5000, "3", [], {}, [[[]]], "\u0000", "NaN", 3.5,
    )  # fmt: skip
    names = ("prompt", "n", "size", "seed", "steps", "guidance", "labels", "model", "stream", "output_format")
    body = {"prompt": "3", "steps": 2} | {
        chosen.choice(names): chosen.choice(values) for _ in range(chosen.randint(1, 3))
    }
    content = json.dumps(body).encode()
    kind = chosen.randrange(6)
    if kind == 0:  # cut or changed bytes
        place = chosen.randrange(len(content))
        content = content[:place] + bytes(chosen.randrange(256) for _ in range(chosen.randrange(9)))
    if kind == 1:
        return bytes(chosen.randrange(256) for _ in range(chosen.randrange(1, 400))) + b"\r\n\r\n", False
    path = chosen.choice((GENERATIONS, GENERATIONS, "/v1/images/edits", "/v1/models/..%2f..%2fetc", "/%ff"))
    length = len(content) if kind != 2 else chosen.choice((-5, 10**18, len(content) - 1))
    types = ("application/json", "multipart/form-data; boundary=x", "multipart/form-data", "\x7f")
    if kind == 3:
        content = b'--x\r\nContent-Disposition: form-data; name="image"; filename="../a"\r\n\r\n' + content
        length = len(content)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {chosen.choice(types)}\r\n"
    return head.encode() + f"Content-Length: {length}\r\n\r\n".encode() + content, kind == 2


def _said(url: str, content: bytes, hangs_up: bool) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    said = b""
    with socket.create_connection((host, int(port)), timeout=60) as connection, suppress(OSError):
        connection.sendall(content)
        if hangs_up:
            connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(2**16):
            said = said or piece
    return said


PARTS = {
    "throughput": throughput,
    "throughput_16_steps": partial(throughput, 16),
    "latency": latency,
    "memory": memory,
    "broken": broken,
    "killed": killed,
}


def _ratio(speed: dict[str, float]) -> str:
    return (
        f"{speed['ratio']:.2f} ({speed['ratio_min']:.2f} to {speed['ratio_max']:.2f}; "
        f"{speed['server_images_per_s']:.2f} and {speed['pipeline_images_per_s']:.2f} images/s)"
    )


def table(results: dict[str, Any]) -> str:
    """The table of docs/serving.md."""
    memory, broken = results["memory"], results["broken"]
    values = [
        *(_ratio(results[name]) for name in ("throughput_16_steps", "throughput")),
        f"{results['throughput']['decoding_share']:.3f}",
        f"{memory['ratio']:.3f} ({memory['rss_mb'][0]:.0f} and {memory['rss_mb'][-1]:.0f} MB)",
        f"{broken['worse']}",
        f"{memory['lost_or_twice']} of 5,000",
        f"{'yes' if results['killed']['answers'] else 'no'}, {results['killed']['start_s']:.0f} s later",
    ]
    rows = [
        f"| {name} | {wanted} | {value} |"
        for (name, wanted), value in zip(WANTED.items(), values, strict=True)
    ]
    clients = [
        f"| {row['clients']} | {row['p50_ms']:.0f} | {row['p95_ms']:.0f} | {row['images_per_s']:.1f} |"
        for row in results["latency"]
    ]
    return "\n".join(
        [
            "| what | wanted | measured |",
            "|---|---|---|",
            *rows,
            "",
            "| clients | p50, ms | p95, ms | images/s |",
            "|---|---|---|---|",
            *clients,
        ]
    )


def main() -> None:
    """Measure the parts that are asked for, and keep the others of the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the result file")
    asked = parser.parse_args()
    results = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    if not asked.table:
        for name in asked.only:
            results[name] = PARTS[name]()
            print(name, json.dumps(results[name]), flush=True)
            write_text(asked.out, json.dumps(results, indent=2) + "\n")
    else:
        print(table(results))


if __name__ == "__main__":
    main()
