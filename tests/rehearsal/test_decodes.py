"""Every bundled model, plain and with everything that accelerates it: no step waits for the host, and none
launches more kernels than its budget.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch

import swiftmask
from swiftmask import pipeline as pipeline_module
from swiftmask.api import CACHINGS
from swiftmask.core.types import Record
from swiftmask.methods.marval import Student
from swiftmask.models.mar import MAR
from swiftmask.pipeline import Pipeline
from swiftmask.registry import bundled_folder, bundled_names, describe
from tests.rehearsal.gpu import DEVICE, Part, Rehearsal

STEPS, FULL = 5, (0, 1, 3)
"""Of the decodes below: the last step is the second of its kind in either half."""

BUDGETS: dict[str, dict[str, int]] = {
    "dimoo-scenes": {
        "plain": 226,
        "dimoo-scenes-shortcut": 170,
        "reuse": 34,
        "extrapolation-1": 36,
        "extrapolation-2": 37,
        "ml-cache": 260,
        "ml-cache-refreshed": 261,
    },
    "mar-scenes": {
        "plain": 179,
        "mar-scenes-marval": 148,
        "mar-scenes-marval-rl": 148,
        "reuse": 82,
        "extrapolation-1": 84,
        "extrapolation-2": 85,
    },
    "maskgit-scenes": {
        "plain": 131,
        "maskgit-scenes-shortcut": 82,
        "reuse": 30,
        "extrapolation-1": 32,
        "extrapolation-2": 33,
    },
    "meissonic-scenes": {
        "plain": 448,
        "meissonic-scenes-speed-rl": 448,
        "reuse": 28,
        "extrapolation-1": 30,
        "extrapolation-2": 31,
    },
}
"""Kernels of the costliest step of each kind after the first: of the model, and of what accelerates it.

A change that needs more says so here; `pytest tests/rehearsal -k budget -s` prints what it takes.
"""

PROMPT = "a small red circle on a plain blue background"


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


def accelerators(base: str) -> dict[str, Callable[[Pipeline], Pipeline]]:
    """Everything bundled for a model, and every caching, by name."""
    found: dict[str, Callable[[Pipeline], Pipeline]] = {"plain": lambda pipeline: pipeline}
    for name in bundled_names("method"):
        if name.startswith(f"{base}-"):
            way = {describe(bundled_folder(name)).family: name}
            found[name] = partial(swiftmask.accelerate, **way)
    return found | {name: partial(swiftmask.accelerate, caching=name) for name in CACHINGS}


def short(pipeline: Pipeline) -> Pipeline:
    """Guided, and with two denoising steps where there are any; a student has neither."""
    changes: dict[str, Any] = {} if isinstance(pipeline.model, Student) else {"guidance": 2.0}
    if isinstance(pipeline.model, MAR):
        changes["denoising_steps"] = 2
    full_steps = FULL if pipeline.features_fn is not None else None
    return replace(pipeline, sampling=replace(pipeline.sampling, **changes), full_steps=full_steps, _flops={})


def drawn(pipeline: Pipeline, **options: Any) -> torch.Tensor:
    what: dict[str, Any] = (
        {"prompts": [PROMPT] * 2} if pipeline.model.spec.draws == "prompt" else {"labels": [3, 1]}
    )
    return pipeline.generate(**what, steps=STEPS, output_type="pt", **options).trajectory.tokens_BL


@pytest.fixture(scope="module", params=bundled_names("model"))
def base(request: pytest.FixtureRequest) -> Pipeline:
    return swiftmask.load(request.param)


def test_steps_wait_for_nothing_and_stay_within_their_budget(
    base: Pipeline, gpu: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.to(DEVICE)
    took: dict[str, int] = {}
    waits: list[str] = []
    for name, accelerated in accelerators(base.name).items():
        try:
            pipeline = short(accelerated(base))
        except ValueError as error:
            assert "ml-cache" in str(error)
            continue
        with watched(gpu, monkeypatch) as decode:
            drawn(pipeline)
        is_mixed = not all(decode.full)
        took[name] = decode.kernels(full=not is_mixed)
        waits += [f"{name}: {wait}" for wait in decode.waits]
    print(f'    "{base.name}": {took},')
    assert not waits
    budget = BUDGETS.get(base.name, {})
    over = {name: count for name, count in took.items() if count > budget.get(name, 0)}
    assert not over, f"budget {budget}"
