"""One process and two that talk through gloo, on the same global batches."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("one_of_several.py")


def run(folder: Path, num_processes: int) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": num_processes, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, folder],
            env=os.environ
            | {key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()},
        )
        for rank in range(num_processes)
    ]
    try:
        assert [process.wait(timeout=1800) for process in started] == [0] * num_processes
    finally:
        for process in started:
            process.kill()


@pytest.mark.slow
def test_one_process_and_two_train_the_same_policy(tmp_path):
    for num_processes in (1, 2):
        run(tmp_path / str(num_processes), num_processes)
    alone, shared = (load_file(tmp_path / n / "checkpoint.safetensors") for n in ("1", "2"))
    assert set(alone) == set(shared)
    for name, value in alone.items():
        assert torch.allclose(value, shared[name], rtol=1e-3, atol=1e-4), name
    logs = [
        [json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("1", "2")
    ]
    for ours, theirs in zip(*logs, strict=True):
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)
    assert logs[0][0]["num_tokens"] == 2 * logs[1][0]["num_tokens"]  # the work was shared
