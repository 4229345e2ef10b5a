"""What the MARVAL recipes share: a teacher, real tokens as a function of the step, and the run itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from swiftmask.methods.marval import Student, head_parameters, network_parameters
from swiftmask.methods.marval.objective import diffusion_rate, flat, noise_level
from swiftmask.methods.marval.training import (
    CleanTokens,
    MarvalBatches,
    MarvalConfig,
    MarvalTrainer,
    make_trainer,
    train_step,
)
from swiftmask.models.mar import MAR
from swiftmask.recipes.runs import OnLog, require_model
from swiftmask.training.loop import train
from swiftmask.training.setup import TrainingConfig, step_seed

Part = Literal["network", "head"]
"""What a student and its auxiliary network train: everything that draws a token, or the head alone."""

Weight = Literal["flat", "noise-level", "diffusion-rate"]
"""omega(t) of the student's loss."""

_PARTS = {"network": network_parameters, "head": head_parameters}
_WEIGHTS = {"flat": flat, "noise-level": noise_level, "diffusion-rate": diffusion_rate}

_DATA_STREAM = 0x64617461
"""Keeps the draws of data apart from those of masks, and from those the training loop makes with the same
seed and step."""

DrawTokens = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""`draw(count, generator) -> (tokens_BLC, labels_B)`, on the CPU."""


def read_teacher(folder: str | Path, *, trained_by: str) -> MAR:
    """A frozen MAR on the CPU.

    Args:
        trained_by: the recipe that makes it, for the complaint.

    Errors: FileNotFoundError, ValueError for a damaged folder.
    """
    source = require_model(folder, setting="teacher", trained_by=trained_by)
    return MAR.from_pretrained(source)


def clean_tokens(draw: DrawTokens, training: TrainingConfig, device: torch.device) -> CleanTokens:
    """Real tokens of a step, a function of it alone, on the device of the training."""

    def clean(step: int, rank: int, num_ranks: int) -> tuple[Tensor, list[int]]:
        generator = torch.Generator().manual_seed(step_seed(training.seed, step, rank + _DATA_STREAM))
        tokens_BLC, labels_B = draw(training.batch_size // num_ranks, generator)
        return tokens_BLC.to(device), labels_B.tolist()

    return clean


def make_distillation(teacher: MAR, config: MarvalConfig, *, part: Part, weight: Weight) -> MarvalTrainer:
    """Student and auxiliary network as copies of the teacher."""
    return make_trainer(teacher, _PARTS[part](teacher), config, weight=_WEIGHTS[weight])


def distil(
    trainer: MarvalTrainer,
    clean: CleanTokens,
    config: MarvalConfig,
    training: TrainingConfig,
    folder: Path,
    *,
    name: str,
    on_log: OnLog | None,
) -> Student:
    """Train, or continue, in `folder`; returns the averaged student.

    Args:
        name: from `run_name`.
    """
    torch.manual_seed(training.seed)
    batches = MarvalBatches(clean, config)
    trained = train(trainer, batches, train_step, training, folder, name=name, on_log=on_log)
    return trained.student
