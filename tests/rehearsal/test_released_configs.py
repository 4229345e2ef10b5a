"""An update of every training in configs/ at real size, without values: where tensors are, what waits for the
host, the precision of products; and what benchmarks/training_cost.py measures. Of Meissonic and Lumina-DiMOO,
whose blocks are all alike, the blocks that count as one are there.
"""

import sys
from pathlib import Path

import pytest
import torch
from fake_gpu import DEVICE, DeviceTensor, Rehearsal, found_by_accelerate
from torch import nn

from swiftmask.training.loop import advance, begin
from swiftmask.training.setup import train_step

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import training_cost  # noqa: E402

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))

FEWER: dict[str, list[str]] = {
    "shortcut": [
        "rounds.images_per_round=2",
        "rounds.images_per_update=2",
        "rounds.step_counts=3",
        "full_steps=2",
    ],
    "speed-rl": [
        "speed_rl.num_generations=2",
        "speed_rl.generation_batch_size=2",
        "speed_rl.images_per_forward=2",
        "speed_rl.step_counts=2",
        "speed_rl.activations=kept",
        "training.batch_size=2",
    ],
    "marval": ["training.batch_size=2"],
}
"""Settings that make an update small, by recipe; sizes of networks stay."""

WAITS = {
    ("read", "training/loop.py"),  # whether loss and gradient are finite
    ("copy to the device", "models/mar/generator.py"),  # labels
    ("copy to the device", "models/meissonic/generator.py"),  # prompts, once an update
    ("copy to the device", "models/meissonic/rotary.py"),  # positions, once a run
    ("copy to the device", "training/processes.py"),  # metrics of the round
    ("read", "methods/speed_rl/training.py"),  # metrics of the update
}
"""What an update waits for: the kind, and the file of the line that asks."""


PRECISE = {"models/mar/head.py"}
"""Files with products in float32 under autocast: the last layer of MAR's head."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_update_computes_in_bfloat16_on_the_device(path: Path, tmp_path: Path) -> None:
    settings = [*FEWER[training_cost.read_config_file(path)[0] or ""], "training.accumulate=1"]
    depth = None if training_cost.released_depth(training_cost.base_name(path)) is None else 1
    with found_by_accelerate(), Rehearsal(values=False) as gpu:
        _, training = training_cost.of_config(path, settings, depth)
        run = begin(training.trainer, training.config, tmp_path, "rehearsal")
        batch = training.batches(0, 0, 1)
        with gpu.part() as part:
            metrics = advance(run, lambda *_: batch, train_step, training.config)
    assert run.step == 1
    assert metrics["loss"].device == DEVICE
    assert {(event.kind, event.where.partition(":")[0]) for event in part.events} <= WAITS
    assert len(part.products) > 50
    others = [where.partition(":")[0] for _, dtype, where in part.products if dtype != torch.bfloat16]
    forward = [where for where in others if where != "a test"]  # autograd's have no line of the package
    assert set(forward) <= PRECISE
    assert len(others) <= 3 * len(forward)


def test_memory_counts_what_is_alive() -> None:
    with Rehearsal(values=False), training_cost.Memory() as memory:
        kept = nn.Linear(1000, 1000, bias=False).to(DEVICE).weight
        assert isinstance(kept, DeviceTensor)
        assert memory.live == 4_000_000
        view, double = kept[:10], kept.double()
        assert memory.live == 12_000_000
        del view, double
        assert (memory.live, memory.peak) == (4_000_000, 12_000_000)
        kept.data.add_(1)
        assert memory.live == 4_000_000


def test_operations_of_a_shortcut_grow_with_its_images() -> None:
    path = ROOT / "configs" / "maskgit-512-shortcut.yaml"
    settings = ["full_steps=2", "rounds.step_counts=2", "rounds.images_per_round=2"]
    few, many = (
        training_cost.measure(path, [*settings, f"rounds.images_per_update={images}"], num_updates=1)
        for images in (1, 2)
    )
    assert few.round_flops == many.round_flops
    assert 2 * few.update_flops == pytest.approx(many.update_flops, rel=0.1)
    assert few.base_parameters > 40 * few.trained_parameters
    assert few.peak_bytes <= many.peak_bytes


def test_what_differs_between_two_depths_is_extrapolated() -> None:
    cost = training_cost.Cost(
        config="a.yaml",
        base="b",
        base_parameters=10,
        trained_parameters=4,
        weights_bytes=100,
        round_peak_bytes=300,
        update_peak_bytes=200,
        num_steps=5,
        measured_steps=1,
        round_flops=1.0,
        update_flops=2.0,
    )
    two = training_cost.replace(cost, base_parameters=16, update_peak_bytes=260, update_flops=3.5)
    four = training_cost.extrapolated(cost, two, 3.0)
    assert four == training_cost.replace(cost, base_parameters=28, update_peak_bytes=380, update_flops=6.5)
    assert four.peak_bytes == 380
    assert four.hours(5 * 7.5 / 3600) == pytest.approx(1.0)
