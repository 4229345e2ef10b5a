"""What recipes share: where they train, which model they start from, what a checkpoint is checked against."""

import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from swiftmask.training.loop import Progress
from swiftmask.training.processes import processes

OnLog = Callable[[Progress], None]


def require_model(folder: str | Path, *, setting: str, trained_by: str) -> Path:
    """The folder, if a model is in it.

    Args:
        setting: of the recipe that names the folder, and `trained_by` the recipe that makes it, for the
            complaint.

    Errors: FileNotFoundError.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no {setting} in {folder}: train it (swiftmask train {trained_by}) and give its folder, as in "
            f"{setting}=runs/{trained_by}/model"
        )
    return folder


def run_name(name: str, start: nn.Module, *settings: object) -> str:
    """What a checkpoint is checked against beside the optimisation: the weights it starts from, and settings
    that the optimisation does not hold.
    """
    return f"{name}-{fingerprint(start)}-{zlib.crc32(repr(settings).encode()):08x}"


def fingerprint(module: nn.Module) -> str:
    """Eight hex digits of a module's weights."""
    checksum = 0
    for value in module.state_dict().values():
        bytes_X = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        checksum = zlib.crc32(bytes_X.numpy().tobytes(), checksum)
    return f"{checksum:08x}"


def training_device() -> torch.device:
    """Where the training loop will put a model; a teacher has to be there before it is copied."""
    device = processes().device
    assert device is not None
    return device
