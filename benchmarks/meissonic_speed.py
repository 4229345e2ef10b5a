"""Meissonic at its released size with random weights: a decode step and an update of Speed-RL beside the
machine's matmul peak, and what a run of Speed-RL would take: JSON.

    python benchmarks/meissonic_speed.py --device cuda --precision bf16 --batch 4 --method full

Speed does not depend on the weights. The text encoder is a stand-in of one layer, as texts are encoded once a
image, and the codec takes no memory: decoding and rewards are in no number here. An update is what is done
with some images of a round: every decode step scored again, with gradients, and the reference beside it.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from swiftmask.api import device_named
from swiftmask.cli.random_models import meissonic_around
from swiftmask.core.decode import prepare_condition
from swiftmask.core.rng import SeededNoise
from swiftmask.core.types import Canvas, Schedule, Trajectory
from swiftmask.core.writing import write_text
from swiftmask.evaluate.memory import peak_memory_bytes, reset_peak_memory
from swiftmask.evaluate.speed import matmul_task, time_in_turn
from swiftmask.methods.speed_rl import SpeedRLConfig, SpeedRLTrainer, TuningConfig
from swiftmask.methods.speed_rl.policy import trained_parameters
from swiftmask.methods.speed_rl.rollouts import Replay
from swiftmask.methods.speed_rl.training import Lesson, SpeedRLBatch
from swiftmask.models.meissonic import Meissonic
from swiftmask.models.meissonic.network import Transformer
from swiftmask.models.meissonic.weights import RELEASED, random_transformer
from swiftmask.pipeline import Pipeline
from swiftmask.recipes.provenance import commit, machine

BACKBONE_SIDE = 32
"""Rows of the grid that the blocks of both released models see."""

TARGETS = {
    "lora": r"transformer\.(single_)?transformer_blocks\.\d+\.(attn|ff|proj).*",
    "full": r"transformer\..*",
}
"""Adapters go to attention and feed-forward layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Hours of Speed-RL, from the measured times; decoding and rewards not counted."""

    rounds: int
    pictures: int
    mean_steps: float
    rollout_hours: float
    update_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Times are of a whole batch.

    Attributes:
        forward_ms: one decode step: both guidance branches, head, sampling.
        update_ms: scoring `steps` decode steps again, forward and backward, with the reference.
        optimizer_ms: one step of AdamW, once a round.
        update_flops: counted, what is recomputed included.
        peak_memory_bytes: of the process on a CPU, of the allocator on a GPU.
    """

    model: str
    method: str
    activations: str
    precision: str
    batch: int
    steps: int
    repeats: int
    forward_ms: float
    forward_flops: int
    forward_peak_share: float
    forward_peak_memory_bytes: int
    update_ms: float
    update_flops: int
    update_peak_share: float
    update_peak_memory_bytes: int
    optimizer_ms: float
    trained_parameters: int
    matmul_peak_flops: float
    estimate: Estimate
    device: str
    threads: int
    machine: str
    commit: str
    command: str


def on_meta(chosen: argparse.Namespace) -> Meissonic:
    """The same model without memory, to count operations."""
    with torch.device("meta"):
        transformer = Transformer(RELEASED[chosen.model]).eval()
    return meissonic_around(transformer, side=chosen.side)


def replay_of(model: Meissonic, schedule: Schedule, batch: int) -> Replay:
    """Images of random codes, decided in the order of their places: speed depends on the counts alone."""
    left = torch.tensor([step.num_masked_after for step in schedule])
    places_L = torch.arange(model.spec.num_tokens)
    decided_at_L = (places_L[:, None] < left).sum(dim=1).to(model.device)
    codes_BL = torch.randint(model.spec.codebook_size or 0, (batch, len(places_L)), device=model.device)
    trajectory = Trajectory(model.blank(batch), codes_BL, decided_at_L.expand(batch, -1), None)
    return Replay(tuple(range(batch)), ["image"] * batch, tuple(schedule), trajectory)


def forward_task(model: Meissonic, replay: Replay, autocast: "Autocast") -> Callable[[], object]:
    """The step in the middle of the decode."""
    step = replay.schedule[len(replay.schedule) // 2]
    canvas: Canvas = replay.trajectory.canvas_at(step)
    condition: Any = prepare_condition(model, model.encode(replay.what), replay.schedule)
    positions_BM = canvas.masked_positions()
    noise = SeededNoise(replay.rows, model.spec.num_tokens, model.device)

    def run() -> object:
        with autocast():
            features_GBTD = model.features(canvas, condition)
            return model.tokens(features_GBTD, positions_BM, step.guidance).sample(noise, step)

    return run


Autocast = Callable[[], torch.autocast]


def update_task(trainer: SpeedRLTrainer, replay: Replay, autocast: Autocast) -> Callable[[], object]:
    """One lesson: loss and gradients, without the optimizer."""
    ones_B = torch.ones(len(replay.rows), device=replay.trajectory.tokens_BL.device)
    batch = SpeedRLBatch([Lesson(replay, None, ones_B, ones_B / len(ones_B))], {})

    def run() -> object:
        with autocast():
            loss: Tensor = trainer(batch)[0]
        loss.backward()
        return loss

    return run


def update_flops(model: Meissonic, config: SpeedRLConfig, schedule: Schedule) -> int:
    """Operations of a lesson of one image, counted on the meta device; attention through the math backend,
    as the counter reads 0 for fused attention on a CPU.
    """
    scorer = SpeedRLTrainer(model, config).scorer(config.kl)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        scores = scorer(replay_of(model, schedule, 1))
        (scores.log_prob_BL.mean() + config.beta * scores.kl_BL.mean()).backward()
    return counter.get_total_flops()


def median_ms(task: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of some calls after one that does not count, with gradients."""
    seconds = []
    for index in range(repeats + 1):
        _wait(device)
        started = time.perf_counter()
        task()
        _wait(device)
        seconds += [time.perf_counter() - started] if index else []
    return 1000 * statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class Forward:
    """A decode step, and the matmul peak measured in turn with it."""

    milliseconds: float
    peak_memory_bytes: int
    matmul_peak_flops: float


def time_forward(model: Meissonic, replay: Replay, autocast: Autocast, chosen: argparse.Namespace) -> Forward:
    dtype = torch.bfloat16 if chosen.precision == "bf16" else torch.float32
    matmuls = {f"matmul-{size}": matmul_task(size, model.device, dtype) for size in chosen.matmul_sizes}
    tasks = {"forward": forward_task(model, replay, autocast)}
    tasks |= {name: task for name, (task, _) in matmuls.items()}
    reset_peak_memory(model.device)
    timings = time_in_turn(tasks, model.device, repeats=chosen.repeats, warmup=1)
    peak = max(flops / timings[name].best_s for name, (_, flops) in matmuls.items())
    return Forward(timings["forward"].median_ms, peak_memory_bytes(model.device), peak)


@dataclass(frozen=True, slots=True)
class Update:
    """A lesson, and a step of the optimizer."""

    milliseconds: float
    optimizer_ms: float
    peak_memory_bytes: int
    trained_parameters: int


def time_update(
    model: Meissonic, config: SpeedRLConfig, replay: Replay, autocast: Autocast, repeats: int
) -> Update:
    trainer, device = SpeedRLTrainer(model, config), model.device
    parameters = list(trained_parameters(trainer.policy).values())
    optimizer = torch.optim.AdamW(parameters)
    reset_peak_memory(device)
    milliseconds = median_ms(update_task(trainer, replay, autocast), device, repeats)
    optimizer_ms = median_ms(optimizer.step, device, 1)
    count = sum(parameter.numel() for parameter in parameters)
    return Update(milliseconds, optimizer_ms, peak_memory_bytes(device), count)


def measure(chosen: argparse.Namespace) -> Report:
    device = device_named(chosen.device) or torch.device("cpu")

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=chosen.precision == "bf16")

    model = meissonic_around(random_transformer(chosen.model).to(device), side=chosen.side)
    counted = on_meta(chosen)
    config = SpeedRLConfig(
        tuning=TuningConfig(method=chosen.method, targets=TARGETS[chosen.method]),
        num_generations=2,
        generation_batch_size=2,
        step_counts=(chosen.steps,),
        activations=chosen.activations,
    )
    schedule = model.schedule(chosen.steps, num_masked=model.spec.num_tokens, options=config.sampling)
    replay = replay_of(model, schedule, chosen.batch)
    forward = time_forward(model, replay, autocast, chosen)
    update = time_update(model, config, replay, autocast, chosen.repeats)
    middle: Any = counted  # the protocol's Condition is wider
    forward_flops = chosen.batch * Pipeline(middle).flops([schedule[len(schedule) // 2]])
    learnt_flops = chosen.batch * update_flops(counted, config, schedule)
    peak = forward.matmul_peak_flops
    return Report(
        model=f"{chosen.model} (random weights)",
        method=chosen.method,
        activations=chosen.activations,
        precision=chosen.precision,
        batch=chosen.batch,
        steps=chosen.steps,
        repeats=chosen.repeats,
        forward_ms=forward.milliseconds,
        forward_flops=forward_flops,
        forward_peak_share=forward_flops / (forward.milliseconds / 1000) / peak,
        forward_peak_memory_bytes=forward.peak_memory_bytes,
        update_ms=update.milliseconds,
        update_flops=learnt_flops,
        update_peak_share=learnt_flops / (update.milliseconds / 1000) / peak,
        update_peak_memory_bytes=update.peak_memory_bytes,
        optimizer_ms=update.optimizer_ms,
        trained_parameters=update.trained_parameters,
        matmul_peak_flops=peak,
        estimate=estimate(chosen, forward.milliseconds, update.milliseconds, update.optimizer_ms),
        device=str(device),
        threads=torch.get_num_threads(),
        machine=machine(),
        commit=commit(),
        command=" ".join(["python", *sys.argv]),
    )


def estimate(
    chosen: argparse.Namespace, forward_ms: float, update_ms: float, optimizer_ms: float
) -> Estimate:
    """Hours of `chosen.rounds` rounds."""
    image_steps = chosen.rounds * chosen.images * chosen.mean_steps
    hours = 1 / 3_600_000
    return Estimate(
        rounds=chosen.rounds,
        pictures=chosen.images,
        mean_steps=chosen.mean_steps,
        rollout_hours=hours * image_steps * forward_ms / chosen.batch,
        update_hours=hours
        * (image_steps * update_ms / (chosen.batch * chosen.steps) + chosen.rounds * optimizer_ms),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=list(RELEASED), default="meissonic-1024")
    parser.add_argument("--method", choices=list(TARGETS), default="lora", help="what an update trains")
    parser.add_argument("--activations", choices=["recomputed", "kept"], default="recomputed")
    parser.add_argument("--precision", choices=["no", "bf16"], default="bf16", help="as in training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1, help="images at a time")
    parser.add_argument("--steps", type=int, default=2, help="decode steps of the images of an update")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, default=BACKBONE_SIDE, help="rows that the blocks see")
    parser.add_argument("--matmul-sizes", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--rounds", type=int, default=300, help="of the estimate")
    parser.add_argument("--images", type=int, default=64, help="of a round of the estimate")
    parser.add_argument("--mean-steps", type=float, default=15.0, help="of its images: those of 8,12,16,24")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    return parser.parse_args()


def main() -> None:
    chosen = _arguments()
    text = json.dumps(asdict(measure(chosen)), indent=2) + "\n"
    if chosen.out is not None:
        write_text(chosen.out, text)
    print(text, end="")


if __name__ == "__main__":
    main()
