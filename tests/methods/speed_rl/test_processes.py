"""One process and two that talk through gloo, on the same global batches."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("one_of_several.py")


@pytest.mark.slow
def test_one_process_and_two_train_the_same_policy(tmp_path, in_processes):
    for num_processes in (1, 2):
        in_processes(SCRIPT, tmp_path / str(num_processes), count=num_processes)
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
