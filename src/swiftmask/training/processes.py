"""The processes of a run, one or those that `torchrun` started, and the devices they compute on."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor


def on_cpu() -> bool:
    """Whether there is no accelerator, or `ACCELERATE_USE_CPU` says to do without. Processes on CPUs must be
    told: accelerate takes them for so many runs of their own.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def processes() -> PartialState:
    """Which process this is, of how many, and its device."""
    return PartialState(cpu=on_cpu())


def to_device(nest: Any, device: torch.device) -> Any:
    """A copy of a nest of dataclasses, tuples, lists and dicts with every tensor on `device`."""
    if isinstance(nest, Tensor):
        return nest.to(device)
    if is_dataclass(nest) and not isinstance(nest, type):
        return replace(nest, **{f.name: to_device(getattr(nest, f.name), device) for f in fields(nest)})
    if isinstance(nest, dict):
        return {key: to_device(value, device) for key, value in nest.items()}
    if isinstance(nest, tuple | list):
        moved = [to_device(value, device) for value in nest]
        return type(nest)(*moved) if hasattr(nest, "_fields") else type(nest)(moved)
    return nest
