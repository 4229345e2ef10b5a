"""The training loop: exact resume, atomic checkpoints, a stop at the first non-finite loss."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from swiftmask.training.checkpoint import Reached, load_checkpoint, save_checkpoint
from swiftmask.training.loop import NonFiniteError, Progress, train
from swiftmask.training.metrics import hours_of
from swiftmask.training.setup import TrainingConfig, learning_rate_factor, step_seed


class Toy(nn.Module):
    """A block matrix (for Muon), an embedding (for AdamW) and dropout (for the random state)."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 8)
        self.hidden = nn.Linear(8, 8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.dropout(self.hidden(self.emb(batch)))
        loss = (x - 1).square().mean()
        return loss, {"mean": x.mean()}


def train_step(model, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return model(batch)


def batches(step: int, rank: int, num_ranks: int) -> Tensor:
    return torch.randint(5, (16,), generator=torch.Generator().manual_seed(step_seed(3, step, rank)))


def config(num_steps: int, **changes) -> TrainingConfig:
    settings = {"learning_rate": 0.05, "warmup_steps": 2, "log_every": 1, "save_every": 4, "precision": "no"}
    return TrainingConfig(num_steps=num_steps, batch_size=16, **(settings | changes))


def fresh() -> Toy:
    torch.manual_seed(0)
    return Toy()


def losses(folder: Path) -> list[str]:
    return [line.split('"loss": ')[1] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("muon", [None, 0.02])
def test_a_killed_run_continues_bit_for_bit(tmp_path, muon):
    settings = config(10, muon_learning_rate=muon)
    whole = train(fresh(), batches, train_step, settings, tmp_path / "whole", name="toy")

    class KilledError(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.step == 7:  # after the checkpoint of step 4, before that of step 8
            raise KilledError

    with pytest.raises(KilledError):
        train(fresh(), batches, train_step, settings, tmp_path / "cut", name="toy", on_log=kill)
    torch.manual_seed(99)  # a new process has another random state and other initial weights
    resumed = train(Toy(), batches, train_step, settings, tmp_path / "cut", name="toy")
    assert losses(tmp_path / "cut")[-6:] == losses(tmp_path / "whole")[-6:]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_training_lowers_the_loss(tmp_path):
    seen: list[Progress] = []
    train(fresh(), batches, train_step, config(60), tmp_path, name="toy", on_log=seen.append)
    assert seen[0].metrics == {}
    assert seen[-1].metrics["loss"] < 0.7 * seen[1].metrics["loss"]
    assert [progress.step for progress in seen] == list(range(61))


def test_bfloat16_weights_leave_float32_masters(tmp_path):
    seen: list[Progress] = []
    settings = config(40, precision="bf16-weights")
    model = train(fresh(), batches, train_step, settings, tmp_path, name="toy", on_log=seen.append)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert seen[-1].metrics["loss"] < seen[1].metrics["loss"]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    train(fresh(), batches, train_step, config(2), tmp_path, name="toy")
    with pytest.raises(ValueError, match="other settings"):
        train(fresh(), batches, train_step, config(2, learning_rate=0.01), tmp_path, name="toy")


def test_a_non_finite_loss_stops_and_keeps_the_batch(tmp_path):
    def broken(model, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = model(batch)
        return loss * float("nan"), metrics

    with pytest.raises(NonFiniteError, match="step 1"):
        train(fresh(), batches, broken, config(3), tmp_path, name="toy")
    assert torch.equal(torch.load(tmp_path / "bad_batch.pt", weights_only=True), batches(0, 0, 1))


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"model": fresh()}, [], Reached(1, {}), "toy")
    before = path.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("swiftmask.training.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="space"):
        save_checkpoint(path, {"model": fresh()}, [], Reached(2, {}), "toy")
    assert path.read_bytes() == before


def test_learning_rate_warms_up_and_decays_to_zero():
    settings = config(100, warmup_steps=10)
    factors = [learning_rate_factor(step, settings) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == 1.0
    assert factors[100] == pytest.approx(0.0, abs=1e-9)
    assert all(a >= b for a, b in zip(factors[10:], factors[11:], strict=False))


def test_step_seeds_differ_between_steps_ranks_and_runs():
    seeds = {step_seed(seed, step, rank) for seed in range(5) for step in range(50) for rank in range(4)}
    assert len(seeds) == 5 * 50 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    """Decay multiplies a row that no batch uses by 1 - 10 * 10; loss and gradient stay finite."""
    model = fresh()
    with torch.no_grad():
        model.emb.weight[1] = 1e37

    def first_row_only(step: int, rank: int, num_ranks: int) -> Tensor:
        return torch.zeros(16, dtype=torch.long)

    settings = config(1, learning_rate=10.0, warmup_steps=0, weight_decay=10.0)
    with pytest.raises(NonFiniteError, match="weights are NaN or infinite after step 1"):
        train(model, first_row_only, train_step, settings, tmp_path, name="toy")
    assert not (tmp_path / "checkpoint.safetensors").exists()


def damaged(content: bytes, how: str) -> bytes:
    middle = len(content) - 50  # among the numbers, behind the header
    return {
        "truncated": content[:-9],
        "empty": b"",
        "text": b"not a checkpoint at all",
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "foreign": save({"a": torch.zeros(3)}),
    }[how]


@pytest.mark.parametrize("step", [-1, 9])
def test_a_checkpoint_of_a_step_outside_of_the_run_is_refused(tmp_path, step):
    path, model = tmp_path / "checkpoint.safetensors", fresh()
    save_checkpoint(path, {"model": model}, [], Reached(step, {}), "toy")
    with pytest.raises(ValueError, match=f"is of step {step}: expected 0 to 8; delete it"):
        load_checkpoint(path, {"model": model}, [], "toy", num_steps=8)


class _Copies(TorchDispatchMode):
    """Counts operations that give new tensors, and those of them on their way to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.new, self.to_host = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        inputs = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
        if isinstance(found, Tensor) and found.untyped_storage().data_ptr() not in inputs:
            self.new += 1
            self.to_host += func is torch.ops.aten._to_copy.default
        return found


def test_a_checkpoint_makes_one_copy_of_each_tensor_on_the_host_and_none_on_the_device(tmp_path):
    model = fresh()
    with _Copies() as copies:
        save_checkpoint(tmp_path / "checkpoint.safetensors", {"model": model}, [], Reached(1, {}), "toy")
    assert copies.new == copies.to_host == len(model.state_dict())


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped", "foreign"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    settings = config(8, save_every=3, log_every=2)
    train(fresh(), batches, train_step, settings, tmp_path, name="toy")
    whole = losses(tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    content = damaged(path.read_bytes(), damage)
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged .*: continuing from checkpoint.previous"):
        train(fresh(), batches, train_step, settings, tmp_path, name="toy")
    assert losses(tmp_path) == whole
    for each in tmp_path.glob("checkpoint*"):
        each.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint.safetensors is damaged .* delete it"):
        train(fresh(), batches, train_step, settings, tmp_path, name="toy")


@pytest.mark.parametrize("muon", [None, 0.02])
def test_a_run_that_accumulates_resumes_bit_for_bit(tmp_path, muon):
    settings = config(6, muon_learning_rate=muon, accumulate=2, save_every=2, log_every=4)
    whole = train(fresh(), batches, train_step, settings, tmp_path, name="toy")
    before = losses(tmp_path)
    (tmp_path / "checkpoint.safetensors").unlink()
    resumed = train(fresh(), batches, train_step, settings, tmp_path, name="toy")
    assert losses(tmp_path) == before
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_hours_are_those_of_all_processes_of_a_run(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert hours_of(log) == 0
    log.write_text("".join(f'{{"step": {n}, "seconds": {s}}}\n' for n, s in enumerate((900, 1800, 60, 1800))))
    assert hours_of(log) == 1.0
