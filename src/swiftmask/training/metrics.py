"""Metrics between two lines of the log, over steps and processes, and the log itself."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from swiftmask.core.writing import write_bytes

LOG_NAME = "log.jsonl"

Totals = dict[str, tuple[float, int]]
"""Sum and count of each metric."""


class Window:
    """Collects metrics without waiting for the device, until they are summed.

    A metric that only some steps or processes give is averaged over those.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._new: dict[str, list[Tensor]] = {}
        self.totals: Totals = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Those of one batch."""
        for key, value in metrics.items():
            self._new.setdefault(key, []).append(value.detach())

    def sum(self) -> Totals:
        """Totals of all processes, in the main one; every process must ask for them."""
        mine = {key: torch.stack(values).cpu().double() for key, values in self._new.items()}
        sums = {key: (float(values_X.sum()), len(values_X)) for key, values_X in mine.items()}
        self._new = {}
        everyone = gather_object([sums]) if self._accelerator.num_processes > 1 else [sums]
        if self._accelerator.is_main_process:
            for found in everyone:
                for key, (total, count) in found.items():
                    before, number = self.totals.get(key, (0.0, 0))
                    self.totals[key] = (before + total, number + count)
        return self.totals

    def means(self) -> dict[str, float]:
        """Averages since the last call, in the main process; every process must ask for them."""
        totals, self.totals = self.sum(), {}
        return {key: total / count for key, (total, count) in totals.items()}


def cut_log(path: Path, step: int) -> None:
    """Drop lines of steps that a resumed run will make again, and one that a kill cut short."""
    if not path.exists():
        return
    kept = [line for line in path.read_bytes().split(b"\n") if _step_of(line) <= step]
    write_bytes(path, b"".join(line + b"\n" for line in kept))


def hours_of(path: Path) -> float:
    """Hours of training that a log tells of, over the processes that continued one another; 0 without one."""
    total, last = 0.0, 0.0
    for line in path.read_bytes().splitlines() if path.exists() else []:
        seconds = float(json.loads(line)["seconds"])
        total, last = total + (last if seconds < last else 0.0), seconds
    return (total + last) / 3600


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])  # a metric may be NaN, which parse_json refuses
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
