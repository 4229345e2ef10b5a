"""Where a command computes: what its options mean, and the line on stderr that says it when work starts."""

import os
import platform
from typing import TYPE_CHECKING

from swiftmask.cli.progress import note

if TYPE_CHECKING:
    import torch

    from swiftmask.evaluate.processes import Processes
    from swiftmask.pipeline import Pipeline


def say_where(pipeline: "Pipeline") -> None:
    """Device and precision on stderr. Not before work starts: a refused command says one line."""
    precision = str(pipeline.dtype).removeprefix("torch.")
    note(f"{pipeline.name} on {device_text(pipeline.model.device)} in {precision}")


def own_device(processes: "Processes", name: str) -> "torch.device":
    """Where this process computes. Errors: ValueError for a device that is not there."""
    from swiftmask.api import device_named

    return processes.device(device_named(name))


def enter(folder: str) -> None:
    """Work where the command was started. Errors: ValueError if this machine does not have that folder."""
    try:
        os.chdir(folder)
    except OSError:
        raise ValueError(
            f"{platform.node()} has no {folder}: start the command in a folder that all nodes share"
        ) from None


def device_text(device: "torch.device") -> str:
    """A device for people: with the name of the GPU."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def shares_of(steps: int, *shares: float) -> tuple[int, ...]:
    """Step counts as shares of a model's own, each once and at least 1."""
    return tuple(dict.fromkeys(max(1, round(share * steps)) for share in shares))


def budgets_of(steps: int, *shares: tuple[float, float]) -> tuple[str, ...]:
    """Budgets, STEPS:FULL, whose numbers are shares of a model's own steps."""
    pairs = (tuple(max(1, round(share * steps)) for share in pair) for pair in shares)
    return tuple(dict.fromkeys(f"{count}:{full}" for count, full in pairs))
