"""The only training loop of the package.

A recipe brings a model, `train_step(model, batch) -> (loss, metrics)` and `batches(step, rank, num_ranks)`.
The loop moves model and batch to the device. Both the batch and the random state of a step are functions of
the step number, so a run killed at any moment continues with the same next loss (bit for bit on a CPU). The
loop is Hugging Face accelerate's: start it with plain `python`, or with `torchrun` for several processes.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from swiftmask.training.average import Average
from swiftmask.training.checkpoint import load_checkpoint, save_checkpoint
from swiftmask.training.processes import on_cpu, to_device
from swiftmask.training.setup import (
    Batches,
    Metrics,
    TrainingConfig,
    TrainStep,
    learning_rate_factor,
    make_optimizers,
    step_seed,
)

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Progress:
    """Handed to `on_log`: step counts from 1; metrics are averages since the last log, each over the steps
    that gave it.
    """

    step: int
    num_steps: int
    seconds: float
    metrics: dict[str, float]


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the batch that did it was saved."""


@dataclass(slots=True)
class Run:
    """Everything the loop advances."""

    accelerator: Accelerator
    model: nn.Module
    average: Average
    optimizers: list[Optimizer]
    folder: Path
    fingerprint: str
    step: int = 0

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.accelerator.unwrap_model(self.model), "average": self.average}

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"


def train(
    model: M,
    batches: Batches,
    train_step: TrainStep,
    config: TrainingConfig,
    folder: Path,
    *,
    name: str,
    on_log: Callable[[Progress], None] | None = None,
    on_save: Callable[[int, nn.Module], None] | None = None,
) -> M:
    """Train to `config.num_steps`, continuing from `folder/checkpoint.safetensors` if it is there.

    Args:
        folder: receives the checkpoint and `log.jsonl` (one line of metrics per log).
        name: of the recipe; a checkpoint of another recipe or other settings is refused.
        on_log: progress display.
        on_save: called with the step and the averaged model at every checkpoint (sample pictures).

    Returns: the averaged model, unwrapped.
    Errors: NonFiniteLossError (the batch is in `folder/bad_batch.pt`), ValueError for a foreign checkpoint.
    """
    run = _start(model, config, folder, name)
    started = time.perf_counter()
    seen: dict[str, list[Tensor]] = {}
    while run.step < config.num_steps:
        for key, value in _one_step(run, batches, train_step, config).items():
            seen.setdefault(key, []).append(value)
        if run.step % config.log_every == 0 or run.step == config.num_steps:
            means = {key: float(torch.stack(values).float().mean()) for key, values in seen.items()}
            _log(run, Progress(run.step, config.num_steps, time.perf_counter() - started, means), on_log)
            seen.clear()
        if run.step % config.save_every == 0 or run.step == config.num_steps:
            _save(run, on_save)
    for tracker in run.accelerator.trackers:  # not `end_training`, which parts processes that may train on
        tracker.finish()
    trained = run.average.module
    assert isinstance(trained, type(model))
    return trained


def _start(model: nn.Module, config: TrainingConfig, folder: Path, name: str) -> Run:
    # Attention leaves numbers below 1e-38, which a CPU handles many times slower than zeros.
    torch.set_flush_denormal(True)
    # Precision is ours (`_one_step`): accelerate's is process-wide, and a recipe may train two networks.
    # Trainers that take turns (MARVAL) leave parameters without a gradient; several processes must know.
    turns = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        cpu=on_cpu(), log_with=list(config.report_to) or None, project_dir=folder, kwargs_handlers=[turns]
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = model.to(accelerator.device)
    average = Average(model, config.ema_decay)
    optimizers = make_optimizers(model, config)
    run = Run(accelerator, model, average, optimizers, folder, f"{name}: {config}")
    if run.checkpoint.exists():
        run.step = load_checkpoint(run.checkpoint, run.modules, optimizers, run.fingerprint)
    if accelerator.num_processes > 1:
        run.model = accelerator.prepare(model)
    if config.report_to:
        accelerator.init_trackers(name)
    return run


def _one_step(run: Run, batches: Batches, train_step: TrainStep, config: TrainingConfig) -> Metrics:
    accelerator = run.accelerator
    rank = accelerator.process_index
    batch = to_device(batches(run.step, rank, accelerator.num_processes), accelerator.device)
    torch.manual_seed(step_seed(config.seed, run.step, rank))
    run.model.train()
    with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        loss, metrics = train_step(_computing(run.model, config), batch)
    if not torch.isfinite(loss):
        torch.save(batch, run.folder / "bad_batch.pt")
        raise NonFiniteLossError(
            f"loss is {loss.item()} at step {run.step + 1}; the batch is in {run.folder}/bad_batch.pt"
        )
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(run.model.parameters(), config.max_grad_norm)
    factor = learning_rate_factor(run.step, config)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.average.update(accelerator.unwrap_model(run.model))
    run.step += 1
    return {"loss": loss.detach(), **_detached(metrics), "grad_norm": torch.as_tensor(norm)}


def _computing(model: nn.Module, config: TrainingConfig) -> Callable[..., object]:
    """The model as the step calls it: itself, or with its weights cast to bfloat16 for this one forward."""
    if config.precision != "bf16-weights":
        return model
    weights = {name: p.bfloat16() for name, p in model.named_parameters()}
    return lambda *inputs: functional_call(model, weights, inputs)


def _detached(metrics: Metrics) -> Metrics:
    return {key: value.detach() for key, value in metrics.items()}


def _log(run: Run, progress: Progress, on_log: Callable[[Progress], None] | None) -> None:
    if not run.accelerator.is_main_process:
        return
    line = {"step": progress.step, "seconds": round(progress.seconds, 1), **progress.metrics}
    with (run.folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + os.linesep)
    run.accelerator.log(progress.metrics, step=progress.step)
    if on_log is not None:
        on_log(progress)


def _save(run: Run, on_save: Callable[[int, nn.Module], None] | None) -> None:
    if not run.accelerator.is_main_process:
        return
    save_checkpoint(run.checkpoint, run.modules, run.optimizers, run.step, run.fingerprint)
    if on_save is not None:
        on_save(run.step, run.average.module)
