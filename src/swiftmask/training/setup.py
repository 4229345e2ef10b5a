"""Settings every recipe shares, and the small pieces the loop is put together from."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from swiftmask.core.ranges import check_fields
from swiftmask.training.muon import Muon

Metrics = dict[str, Tensor]
TrainStep = Callable[..., tuple[Tensor, Metrics]]
"""`train_step(model, batch) -> (loss, metrics)`: the whole of a method's objective; `model` is only called.
"""

Batches = Callable[[int, int, int], object]
"""`batches(step, rank, num_ranks) -> batch`: data is a function of the step, which makes resuming exact.

With gradient accumulation a process asks for several ranks of a step, one after the other. The loop moves
tensors to its device, in dataclasses, tuples, lists and dicts, too.
"""


def train_step(trainer: Callable[..., tuple[Tensor, Metrics]], batch: object) -> tuple[Tensor, Metrics]:
    """One update of a trainer whose `forward` is its loss, as that of every method is."""
    return trainer(batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Optimisation settings.

    Attributes:
        num_steps: optimizer steps of the whole run.
        batch_size: images (or pairs) per step over all processes and shares.
        accumulate: shares of a process's part of a step, computed one after the other (gradients add up); a
            method that counts images per update counts them per share.
        sharded: several processes split gradients, optimizer state and averaged weights (FSDP2); otherwise
            each has them whole.
        learning_rate: peak of the schedule (linear warm-up, then cosine to zero).
        muon_learning_rate: if set, hidden matrices and convolutions use Muon (Jordan et al., 2024) with this
            rate, the rest AdamW.
        ema_decay: of the averaged weights, which are the ones evaluated and kept.
        precision: "no" (float32), "bf16" (autocast), or "bf16-weights", which casts the float32 weights once
            per step and computes wholly in bfloat16 (on a CPU a third faster than autocast).
        report_to: accelerate trackers by name ("tensorboard", "wandb", "trackio").

    Errors: ValueError for a setting out of range (core/ranges.py).
    """

    num_steps: int
    batch_size: int
    accumulate: int = 1
    sharded: bool = False
    learning_rate: float = 1e-3
    muon_learning_rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.96)
    weight_decay: float = 1e-2
    warmup_steps: int = 200
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    precision: Literal["no", "bf16", "bf16-weights"] = "bf16"
    seed: int = 0
    save_every: int = 500
    log_every: int = 50
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.sharded and (self.precision == "bf16-weights" or self.muon_learning_rate is not None):
            raise ValueError(
                "sharded splits every matrix: it needs precision 'no' or 'bf16' and AdamW alone, "
                f"got {self.precision!r} and muon_learning_rate {self.muon_learning_rate}"
            )

    def check_shares(self, num_processes: int) -> None:
        """Errors: ValueError for a batch that cannot be shared evenly."""
        if self.batch_size % (num_processes * self.accumulate):
            raise ValueError(
                f"training.batch_size must be a multiple of processes * accumulate "
                f"({num_processes} * {self.accumulate}), got {self.batch_size}"
            )

    def fingerprint(self, num_processes: int) -> str:
        """What a checkpoint is refused for: the settings that change the result, and no others."""
        settings = {key: value for key, value in asdict(self).items() if key not in _WITHOUT_EFFECT}
        return ", ".join(f"{key}={value}" for key, value in (settings | {"processes": num_processes}).items())


_WITHOUT_EFFECT = ("save_every", "log_every", "report_to", "sharded")
"""Settings that change when and where something is written, or how weights lie in memory."""


_NOT_HIDDEN = ("emb", "bias", "wte", "transformer.ff_out", "mlm_layer", "discriminator")
"""In names of matrices that are tables of vectors, that read the vocabulary (LLaDA's and Meissonic's), or
that are trained against the others.
"""


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then cosine decay to zero; multiplies each optimizer's own peak rate."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_optimizers(model: nn.Module, config: TrainingConfig) -> list[Optimizer]:
    """AdamW over everything, or Muon over the matrices inside blocks and AdamW over the rest."""
    hidden, rest = _divided(model, config)
    optimizers: list[Optimizer] = [
        AdamW(rest, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
    ]
    if config.muon_learning_rate is not None:
        optimizers.append(_muon(hidden, config))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _divided(model: nn.Module, config: TrainingConfig) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What Muon trains, and what AdamW does."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.muon_learning_rate is None:
        return [], [p for _, p in trained]
    hidden = [p for name, p in trained if _is_matrix(p) and not any(part in name for part in _NOT_HIDDEN)]
    by_muon = {id(p) for p in hidden}
    return hidden, [p for _, p in trained if id(p) not in by_muon]


def _is_matrix(weights: nn.Parameter) -> bool:
    """Whether every output reads several inputs; a depthwise convolution's reads one."""
    return weights.ndim == 2 or (weights.ndim == 4 and weights.shape[1] > 1)


def memory_needed(model: nn.Module, config: TrainingConfig) -> str:
    """A sentence about a training: parameters, and the memory of all that has their size (in float32)."""
    hidden, rest = (sum(p.numel() for p in part) for part in _divided(model, config))
    total = sum(p.numel() for p in model.parameters())
    trained = hidden + rest
    # Gradients and averaged weights have one number for each that is trained, AdamW has two, Muon one.
    gigabytes = 4 * (total + 3 * trained + rest) / 1e9
    of_them = "" if trained == total else f" ({trained / 1e6:,.1f} million of them trained)"
    return (
        f"{total / 1e6:,.1f} million parameters{of_them}; weights, gradients, optimizer and averaged weights "
        f"take {gigabytes:.2g} GB, activations come on top"
    )


def _muon(matrices: list[nn.Parameter], config: TrainingConfig) -> Optimizer:
    assert config.muon_learning_rate is not None
    return Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay)


def step_seed(seed: int, step: int, rank: int) -> int:
    """One integer per (run, step, process), spread over 63 bits by splitmix64 (for dropout and data)."""
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1
