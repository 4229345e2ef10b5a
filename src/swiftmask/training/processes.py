"""The processes of a run, one or those that `torchrun` started, and the devices they compute on."""

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def on_cpu() -> bool:
    """Whether there is no accelerator, or `ACCELERATE_USE_CPU` says to do without. Processes on CPUs must be
    told: accelerate takes them for so many runs of their own.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def processes() -> PartialState:
    """Which process this is, of how many, and its device."""
    return PartialState(cpu=on_cpu())
