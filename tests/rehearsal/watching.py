"""What happens at each step of a decode that a pipeline makes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fake_gpu import Part, Rehearsal

from swiftmask import pipeline as pipeline_module
from swiftmask.core.types import Record
from swiftmask.methods.marval import Student
from swiftmask.models.mar import MAR
from swiftmask.pipeline import Pipeline

FULL = (0, 1, 3)
"""Full steps of an accelerated decode of five: the last step is the second of its kind in either half."""


@dataclass(slots=True)
class Decode:
    """What happened at each step of a decode."""

    full: list[bool] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def kernels(self, *, full: bool) -> int:
        """Of the costliest step of a kind, the first aside."""
        counts = zip(self.full[1:], self.parts[1:], strict=True)
        return max(part.num_kernels for is_full, part in counts if is_full == full)

    @property
    def waits(self) -> list[str]:
        return [str(event) for part in self.parts for event in part.events]


@contextmanager
def watched(gpu: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decode]:
    """Records the steps of the decodes that pipelines make inside."""
    decode, seen = pipeline_module.decode, Decode()

    def stepwise(*args: Any, on_step: Callable[[Record], None] | None = None, **kwargs: Any) -> Any:
        going_on = [gpu.part()]
        part = going_on[0].__enter__()

        def next_part(record: Record) -> None:
            nonlocal part
            going_on.pop().__exit__(None, None, None)
            seen.full.append(record.step.full)
            seen.parts.append(part)
            if on_step is not None:
                on_step(record)
            going_on.append(gpu.part())
            part = going_on[0].__enter__()

        try:
            return decode(*args, on_step=next_part, **kwargs)
        finally:
            going_on.pop().__exit__(None, None, None)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline_module, "decode", stepwise)
        yield seen


def short(pipeline: Pipeline) -> Pipeline:
    """Guided, and with two denoising steps where there are any; a student has neither."""
    changes: dict[str, Any] = {} if isinstance(pipeline.model, Student) else {"guidance": 2.0}
    if isinstance(pipeline.model, MAR):
        changes["denoising_steps"] = 2
    full_steps = FULL if pipeline.full_steps is not None else None
    return replace(pipeline, sampling=replace(pipeline.sampling, **changes), full_steps=full_steps, _flops={})
