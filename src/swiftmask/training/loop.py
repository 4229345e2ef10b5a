"""The only training loop of the package.

A recipe brings a model, `train_step(model, batch) -> (loss, metrics)` and `batches(step, rank, num_ranks)`.
The loop moves model and batch to the device. Both the batch and the random state of a step are functions of
the step number, so a run killed at any moment continues with the same next loss (bit for bit on a CPU). The
loop is Hugging Face accelerate's: start it with plain `python`, or with `torchrun` for several processes.

A step's data is divided into `processes * accumulate` shares, and a share is what `rank` of `num_ranks`
counts: one process with `accumulate=2` computes one share after the other and learns what two processes do.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from swiftmask.core.writing import full_disk_named
from swiftmask.training.average import Average
from swiftmask.training.checkpoint import Reached, load_checkpoint, save_checkpoint
from swiftmask.training.metrics import LOG_NAME, Window, cut_log
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
from swiftmask.training.sharding import gathered, local, shard, summed_later, unsharded, whole

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Progress:
    """Handed to `on_log`: how far a part of a run is.

    Attributes:
        step: steps done. The first report of a training comes before any, without metrics.
        metrics: averages since the last log, each over the steps that gave it.
        what: the part.
    """

    step: int
    num_steps: int
    seconds: float
    metrics: dict[str, float]
    what: str = "training"


class NonFiniteError(RuntimeError):
    """Loss, gradient or weights became NaN or infinite. Every process raises it at the same step."""


@dataclass(slots=True)
class Run:
    """Everything the loop advances."""

    accelerator: Accelerator
    model: nn.Module
    average: Average
    optimizers: list[Optimizer]
    window: Window
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
        name: of the recipe; a checkpoint of another recipe, of other settings or of another number of
            processes is refused.
        on_log: progress display, in the main process.
        on_save: called with the step and the averaged model before every checkpoint (sample images), in
            the main process.

    Returns: the averaged model, unwrapped.
    Errors: NonFiniteError (a batch with a non-finite loss is in `folder/bad_batch.pt`). ValueError for a
        foreign or damaged checkpoint, or a batch size that does not divide.
    """
    run = begin(model, config, folder, name)
    started = time.perf_counter()
    if run.accelerator.is_main_process and on_log is not None:
        on_log(Progress(run.step, config.num_steps, 0.0, {}))
    while run.step < config.num_steps:
        run.window.add(advance(run, batches, train_step, config))
        is_last = run.step == config.num_steps
        if run.step % config.log_every == 0 or is_last:
            seconds = time.perf_counter() - started
            _log(run, Progress(run.step, config.num_steps, seconds, run.window.means()), on_log)
        if run.step % config.save_every == 0 or is_last:
            _save(run, on_save)
    for tracker in run.accelerator.trackers:  # not `end_training`, which parts processes that may train on
        tracker.finish()
    trained = unsharded(run.average.module)
    assert isinstance(trained, type(model))
    return trained


def begin(model: nn.Module, config: TrainingConfig, folder: Path, name: str) -> Run:
    """A run at its first step, or where the checkpoint in `folder` left off."""
    # Attention leaves numbers below 1e-38, which a CPU handles many times slower than zeros.
    torch.set_flush_denormal(True)
    # Precision is ours (`_share`): accelerate's is process-wide, and a recipe may train two networks.
    # Trainers that take turns (MARVAL) leave parameters without a gradient; several processes must know.
    turns = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        cpu=on_cpu(), log_with=list(config.report_to) or None, project_dir=folder, kwargs_handlers=[turns]
    )
    config.check_shares(accelerator.num_processes)
    folder.mkdir(parents=True, exist_ok=True)
    model = model.to(accelerator.device)
    average = Average(model, config.ema_decay)
    is_sharded = config.sharded and accelerator.num_processes > 1
    if is_sharded:
        shard(model, accelerator)
        shard(average.module, accelerator)
    optimizers = make_optimizers(model, config)
    fingerprint = f"{name}: {config.fingerprint(accelerator.num_processes)}"
    run = Run(accelerator, model, average, optimizers, Window(accelerator), folder, fingerprint)
    reached = load_checkpoint(
        run.checkpoint, run.modules, optimizers, fingerprint, num_steps=config.num_steps
    )
    if reached is not None:
        run.step, run.window.totals = reached.step, reached.totals
    if accelerator.is_main_process:
        cut_log(folder / LOG_NAME, run.step)
    if accelerator.num_processes > 1 and not is_sharded:
        run.model = accelerator.prepare(model)
    if config.report_to:
        accelerator.init_trackers(name)
    return run


def advance(run: Run, batches: Batches, train_step: TrainStep, config: TrainingConfig) -> Metrics:
    """One update of the weights."""
    accelerator = run.accelerator
    run.model.train()
    shares: list[_Share] = []
    with gathered(run.model):
        for index in range(config.accumulate):
            with summed_later(accelerator, run.model, index + 1 < config.accumulate):
                shares.append(_share(run, batches, train_step, config, index))
    norm = whole(torch.as_tensor(accelerator.clip_grad_norm_(run.model.parameters(), config.max_grad_norm)))
    loss = torch.stack([share.loss for share in shares]).mean()
    everywhere = accelerator.reduce(loss.clone(), "mean")
    assert isinstance(everywhere, Tensor)
    if not torch.isfinite(everywhere + norm):
        _stop(run, shares, float(everywhere), float(norm))
    factor = learning_rate_factor(run.step, config)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.average.update(accelerator.unwrap_model(run.model))
    run.step += 1
    return {"loss": loss, **_averaged([share.metrics for share in shares]), "grad_norm": norm}


@dataclass(frozen=True, slots=True)
class _Share:
    """What one share of a step gave."""

    batch: object
    loss: Tensor
    metrics: Metrics


def _share(run: Run, batches: Batches, train_step: TrainStep, config: TrainingConfig, index: int) -> _Share:
    """Forward and backward pass of one share; gradients add up to those of the mean loss."""
    accelerator = run.accelerator
    number = accelerator.process_index * config.accumulate + index
    count = accelerator.num_processes * config.accumulate
    batch = to_device(batches(run.step, number, count), accelerator.device)
    torch.manual_seed(step_seed(config.seed, run.step, number))
    with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        loss, metrics = train_step(_computing(run.model, config), batch)
    accelerator.backward(loss / config.accumulate)
    return _Share(batch, loss.detach(), {key: value.detach() for key, value in metrics.items()})


def _stop(run: Run, shares: list[_Share], loss: float, norm: float) -> NoReturn:
    """Keep a batch of this process whose loss is not finite, and raise."""
    bad = [share.batch for share in shares if not torch.isfinite(share.loss)]
    rank, alone = run.accelerator.process_index, run.accelerator.num_processes == 1
    what = f"loss is {loss}, norm of the gradient {norm} at step {run.step + 1}"
    if not bad and (rank > 0 or not math.isfinite(loss)):
        raise NonFiniteError(f"{what}; the batch is in another process's bad_batch file")
    path = run.folder / ("bad_batch.pt" if alone else f"bad_batch-{rank}.pt")
    torch.save((bad or [share.batch for share in shares])[0], path)
    raise NonFiniteError(f"{what}; the batch is in {path}")


def _averaged(found: list[Metrics]) -> Metrics:
    """Over the shares that gave each."""
    keys = dict.fromkeys(key for metrics in found for key in metrics)
    values = {key: [metrics[key].float() for metrics in found if key in metrics] for key in keys}
    return {key: torch.stack(each).mean() for key, each in values.items()}


def _computing(model: nn.Module, config: TrainingConfig) -> Callable[..., object]:
    """The model as the step calls it: itself, or with its weights cast to bfloat16 for this one forward."""
    if config.precision != "bf16-weights":
        return model
    weights = {name: p.bfloat16() for name, p in model.named_parameters()}
    return lambda *inputs: functional_call(model, weights, inputs)


def _log(run: Run, progress: Progress, on_log: Callable[[Progress], None] | None) -> None:
    if not run.accelerator.is_main_process:
        return
    line = {"step": progress.step, "seconds": round(progress.seconds, 1), **progress.metrics}
    path = run.folder / LOG_NAME
    with full_disk_named(path), path.open("a") as file:
        file.write(json.dumps(line) + os.linesep)
    run.accelerator.log(progress.metrics, step=progress.step)
    if on_log is not None:
        on_log(progress)


def _save(run: Run, on_save: Callable[[int, nn.Module], None] | None) -> None:
    """Every process takes part: weights may be split among them."""
    accelerator = run.accelerator
    _check_weights(run)
    if on_save is not None:  # first: a run killed in between comes here again
        with gathered(run.average.module):
            if accelerator.is_main_process:
                on_save(run.step, run.average.module)
    save_checkpoint(
        run.checkpoint,
        run.modules,
        run.optimizers,
        Reached(run.step, run.window.sum()),
        run.fingerprint,
        writes=accelerator.is_main_process,
    )


def _check_weights(run: Run) -> None:
    """Errors: NonFiniteError, before anything is written over."""
    weights = [local(p) for module in run.modules.values() for p in module.parameters() if p.requires_grad]
    finite = torch.stack([torch.isfinite(weight).all() for weight in weights]).all()
    if run.accelerator.reduce((~finite).float(), "sum"):
        raise NonFiniteError(
            f"weights are NaN or infinite after step {run.step}; the checkpoint in {run.folder} is older:"
            " lower the learning rate and train in another folder"
        )
