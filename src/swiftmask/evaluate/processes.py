"""The processes that share a measurement: one, or those that torchrun started."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Processes:
    """All of them, seen from one. The first of them, `rank` 0, is the one that writes and prints."""

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Self:
        """What torchrun says in the environment."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """This process's part, by index."""
        return work[self.rank :: self.count]

    def device(self, wanted: torch.device) -> torch.device:
        """Where this process computes: "cuda" of several is one GPU each."""
        if self.count == 1 or wanted != torch.device("cuda"):
            return wanted
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.rank)))

    def wait(self) -> None:
        """Return when all processes have come here."""
        self.gathered(None)

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in their order, when all have come here."""
        if self.count == 1:
            return [value]
        from accelerate import PartialState
        from accelerate.utils import gather_object

        # Nothing but this goes between the processes, so gloo does on any device. Shares take unequal
        # time, and torchrun ends the others when one fails: half an hour, the default, is no sign of trouble.
        PartialState(cpu=True, timeout=timedelta(days=1))
        return gather_object([value])


ALONE = Processes()
"""One process that does everything."""
