"""Several processes, accumulation and sharding: all learn what one process learns, and stop together."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from swiftmask.training.setup import TrainingConfig

SCRIPT = Path(__file__).with_name("one_of_several.py")


def made(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**({"num_steps": 4, "batch_size": 8} | changes))


def log_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, in_processes) -> Path:
    """What one process does."""
    folder = tmp_path_factory.mktemp("alone")
    in_processes(SCRIPT, folder, "whole", count=None)
    return folder


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("whole", 2),
        ("accumulated", 1),
        pytest.param("accumulated", 2, marks=pytest.mark.slow),
        ("sharded", 2),
    ],
)
def test_losses_weights_and_checkpoints_are_those_of_one_process(alone, tmp_path, in_processes, kind, count):
    in_processes(SCRIPT, tmp_path, kind, count=count)
    for ours, theirs in zip(log_of(tmp_path), log_of(alone), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"large"}:  # the maximum of a share is no mean
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    mine, its = (load_file(folder / "checkpoint.safetensors") for folder in (tmp_path, alone))
    assert mine.keys() == its.keys()
    for name, value in its.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5)
    weights, expected = (json.loads((f / "weights.json").read_text()) for f in (tmp_path, alone))
    for name, value in expected.items():
        torch.testing.assert_close(torch.tensor(weights[name]), torch.tensor(value), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_sharded_run_resumes(alone, tmp_path, in_processes):
    """From the checkpoint of step 3, whole or split: the fingerprint does not hold the layout."""
    in_processes(SCRIPT, tmp_path, "sharded", count=2)
    (tmp_path / "checkpoint.safetensors").unlink()  # leaves that of step 3
    before = log_of(tmp_path)
    in_processes(SCRIPT, tmp_path, "sharded", count=2)
    assert log_of(tmp_path) == before


def test_a_loss_that_is_nan_in_one_process_stops_all(tmp_path, in_processes):
    in_processes(SCRIPT, tmp_path, "nan", count=2)
    stopped = (tmp_path / "stopped.txt").read_text().splitlines()
    assert len(stopped) == 2
    assert all("at step 2" in line for line in stopped)
    assert (tmp_path / "bad_batch-1.pt").is_file()
    assert not (tmp_path / "bad_batch-0.pt").exists()


def test_a_checkpoint_is_refused_for_what_changes_the_result_alone():
    config = made()
    same = [
        made(**changes).fingerprint(2)
        for changes in ({"save_every": 3}, {"log_every": 7}, {"report_to": ("wandb",)}, {"sharded": True})
    ]
    assert set(same) == {config.fingerprint(2)}
    others = [
        made(**changes).fingerprint(2)
        for changes in (
            {"batch_size": 4},
            {"num_steps": 5},
            {"accumulate": 2},
            {"seed": 1},
            {"learning_rate": 2e-3},
            {"ema_decay": 0.5},
            {"precision": "no"},
            {"betas": (0.9, 0.99)},
        )
    ] + [config.fingerprint(1)]
    assert len({*others, config.fingerprint(2)}) == len(others) + 1


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match=r"multiple of processes \* accumulate \(2 \* 3\), got 8"):
        TrainingConfig(num_steps=1, batch_size=8, accumulate=3).check_shares(2)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 0}, {"batch_size": 0}, {"accumulate": 0}, {"save_every": 0}, {"log_every": 0},
        {"learning_rate": float("inf")}, {"learning_rate": 0.0}, {"learning_rate": float("nan")},
        {"muon_learning_rate": -1.0}, {"ema_decay": 1.0}, {"ema_decay": float("inf")}, {"warmup_steps": -1},
        {"max_grad_norm": 0.0}, {"weight_decay": float("nan")}, {"betas": (0.9, 1.0)}, {"precision": "fp8"},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes):
    (key,) = changes
    with pytest.raises(ValueError, match=f"{key} must be"):
        made(**changes)
