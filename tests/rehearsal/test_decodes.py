"""Every bundled model, plain and with everything that accelerates it: no step waits for the host, and none
launches more kernels than its budget.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from fake_gpu import DEVICE, Rehearsal
from PIL import Image

import swiftmask
from swiftmask.api import CACHINGS
from swiftmask.models.meissonic import Meissonic, with_negative
from swiftmask.pipeline import Pipeline
from swiftmask.registry import bundled_folder, bundled_names, describe
from tests.rehearsal.watching import short, watched

STEPS = 5

BUDGETS: dict[str, dict[str, int]] = {
    "dimoo-scenes": {
        "plain": 224,
        "dimoo-scenes-shortcut": 164,
        "reuse": 34,
        "extrapolation-1": 36,
        "extrapolation-2": 37,
        "ml-cache": 248,
        "ml-cache-refreshed": 250,
    },
    "mar-emoji": {
        "plain": 172,
        "mar-emoji-marval": 139,
        "mar-emoji-marval-rl": 139,
        "reuse": 84,
        "extrapolation-1": 86,
        "extrapolation-2": 87,
    },
    "mar-scenes": {
        "plain": 181,
        "mar-scenes-marval": 148,
        "mar-scenes-marval-rl": 148,
        "reuse": 84,
        "extrapolation-1": 86,
        "extrapolation-2": 87,
    },
    "maskgit-emoji": {
        "plain": 128,
        "reuse": 30,
        "extrapolation-1": 32,
        "extrapolation-2": 33,
    },
    "maskgit-scenes": {
        "plain": 131,
        "maskgit-scenes-shortcut": 82,
        "reuse": 30,
        "extrapolation-1": 32,
        "extrapolation-2": 33,
    },
    "meissonic-emoji": {
        "plain": 339,
        "reuse": 28,
        "extrapolation-1": 30,
        "extrapolation-2": 31,
    },
    "meissonic-scenes": {
        "plain": 384,
        "meissonic-scenes-speed-rl": 384,
        "reuse": 28,
        "extrapolation-1": 30,
        "extrapolation-2": 31,
    },
}
"""Kernels of the costliest step of each kind after the first: of the model, and of what accelerates it.

To update it, run `pytest tests/rehearsal/test_decodes.py -k budget -s` and copy the line of a model that it
prints, in the commit that changes the number. Less than a budget passes, but copy that, too: what is left
over would hide the next kernel too many.
"""

PROMPTS = ["a small red star on a blue circle", "a green square"]
"""Of different lengths, as padding takes kernels of its own, and of words that every bundled model knows."""


def accelerators(base: str) -> dict[str, Callable[[Pipeline], Pipeline]]:
    """Everything bundled for a model, and every caching, by name."""
    found: dict[str, Callable[[Pipeline], Pipeline]] = {"plain": lambda pipeline: pipeline}
    for name in bundled_names("method"):
        if name.startswith(f"{base}-"):
            way = {describe(bundled_folder(name)).family: name}
            found[name] = partial(swiftmask.accelerate, **way)
    return found | {name: partial(swiftmask.accelerate, caching=name) for name in CACHINGS}


def drawn(pipeline: Pipeline, **options: Any) -> torch.Tensor:
    """Two images; a model that takes negative prompts gets one for the first."""
    what: dict[str, Any] = {"labels": [3, 1]}
    if pipeline.model.spec.draws == "prompt":
        prompts: Any = PROMPTS
        if isinstance(pipeline.model, Meissonic):
            prompts = with_negative(prompts, ["a large red circle", ""])
        what = {"prompts": prompts}
    return pipeline.generate(**what, steps=STEPS, output_type="pt", **options).trajectory.tokens_BL


@pytest.fixture(scope="module", params=bundled_names("model"))
def base(request: pytest.FixtureRequest) -> Pipeline:
    return swiftmask.load(request.param, device="cpu")


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
    print(f'\n    "{base.name}": {took},')
    assert not waits
    budget = BUDGETS.get(base.name, {})
    over = {name: count for name, count in took.items() if count > budget.get(name, 0)}
    assert not over, f"budget {budget}"


def test_filling_in_a_image_waits_for_nothing(
    base: Pipeline, gpu: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.to(DEVICE)
    height, width = base.image_size()
    mask = Image.new("L", (width, height))
    mask.paste(255, (0, 0, width // 2, height))
    canvas = base.start_canvas(Image.new("RGB", (width, height), "red"), mask, count=2)
    with watched(gpu, monkeypatch) as decode:
        tokens_BL = drawn(short(base), canvas=canvas)
    assert decode.waits == []
    assert (tokens_BL == canvas.tokens_BL)[~canvas.masked_BL].all()
