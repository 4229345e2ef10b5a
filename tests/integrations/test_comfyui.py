"""ComfyUI's contract of a node, and what the nodes return, without ComfyUI."""

import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import swiftmask
from swiftmask.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

BUILT_IN = {"IMAGE", "MASK", "INT", "FLOAT", "STRING"}
NUMBERS = {"seed": 7, "batch_size": 2, "steps": 3, "guidance": 3.0}


def run(name: str, **inputs: Any) -> Any:
    """A node as ComfyUI runs it: a new object, and every input by name."""
    node = NODE_CLASS_MAPPINGS[f"Swiftmask{name}"]
    return getattr(node(), node.FUNCTION)(**inputs)


@pytest.fixture
def pipeline(tiny_folder: Path) -> swiftmask.Pipeline:
    (loaded,) = run("Load", source=f" {tiny_folder} ", dtype="auto", device="cpu")
    return loaded


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
def test_a_node_keeps_the_contract(name: str) -> None:
    node: Any = NODE_CLASS_MAPPINGS[name]
    inputs = node.INPUT_TYPES()
    assert set(inputs) <= {"required", "optional"}
    function = inspect.signature(getattr(node, node.FUNCTION))
    taken = {key: value for key, value in function.parameters.items() if key != "self"}
    assert list(taken) == [*inputs["required"], *inputs.get("optional", {})]
    assert {key for key, value in taken.items() if value.default is not inspect.Parameter.empty} == set(
        inputs.get("optional", {})
    )
    made = {kind for other in NODE_CLASS_MAPPINGS.values() for kind in other.RETURN_TYPES}  # type: ignore[attr-defined]
    for kind, *options in [*inputs["required"].values(), *inputs.get("optional", {}).values()]:
        assert isinstance(kind, list) or kind in BUILT_IN | made
        for option in options:
            assert option["min"] <= option["default"] <= option["max"] if "min" in option else True
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    assert node.CATEGORY == "swiftmask"
    assert set(NODE_DISPLAY_NAME_MAPPINGS) == set(NODE_CLASS_MAPPINGS)


def test_images_are_those_of_generate_for_seeds_up_to_the_largest(pipeline: swiftmask.Pipeline) -> None:
    seed = NODE_CLASS_MAPPINGS["SwiftmaskGenerate"].INPUT_TYPES()["required"]["seed"][1]  # type: ignore[attr-defined]
    assert seed["max"] == 2**64 - 1
    images, cost = run("Generate", pipeline=pipeline, prompt="3", **{**NUMBERS, "seed": seed["max"]})
    assert images.shape == (2, 8, 8, 3)
    assert images.dtype == torch.float32
    own = pipeline.generate(["3"] * 2, seeds=[2**64 - 1, 0], steps=3, guidance=3.0, output_type="pt")
    assert isinstance(own.images, torch.Tensor)
    assert torch.equal(images, own.images.permute(0, 2, 3, 1))
    assert cost.calls == own.cost.calls


def test_zero_takes_what_the_pipeline_was_made_with(pipeline: swiftmask.Pipeline) -> None:
    images, cost = run("Generate", pipeline=pipeline, prompt="3", **NUMBERS | {"steps": 0, "guidance": 0.0})
    own = pipeline.generate(["3"] * 2, seeds=[7, 8], output_type="pt")
    assert isinstance(own.images, torch.Tensor)
    assert torch.equal(images, own.images.permute(0, 2, 3, 1))
    assert cost.calls["backbone"] == pipeline.steps


def test_accelerated_and_counted(pipeline: swiftmask.Pipeline, tiny_shortcut_folder: Path) -> None:
    asked = {"pipeline": pipeline, "method": "shortcut", "source": str(tiny_shortcut_folder)}
    (fast,) = run("Accelerate", **asked, full_steps=1)
    _, cost = run("Generate", pipeline=fast, prompt="3", **NUMBERS)
    shown = run("Cost", cost=cost)
    gflop, seconds, text = shown["result"]
    assert gflop == cost.flops / 1e9 > 0
    assert seconds > 0
    assert "backbone 1" in text and "shortcut 2" in text
    assert shown["ui"] == {"text": [text]}
    (reused,) = run("Accelerate", pipeline=pipeline, method="caching", source="reuse", full_steps=0)
    assert reused.full_steps == pipeline.steps // 2


def test_pixels_outside_the_mask_are_unchanged(pipeline: swiftmask.Pipeline) -> None:
    bytes_BHW3 = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    image = torch.from_numpy(bytes_BHW3).float() / 255
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :4] = 1
    drawn, _ = run("Inpaint", pipeline=pipeline, prompt="3", image=image, mask=mask, **NUMBERS)
    assert torch.equal(drawn[:, :, 4:], image[:, :, 4:].expand(2, -1, -1, -1))
    assert not torch.equal(drawn[0], drawn[1])
    with pytest.raises(ValueError, match="expected one image and one mask, got 2 and 1"):
        run("Inpaint", pipeline=pipeline, prompt="3", image=image.repeat(2, 1, 1, 1), mask=mask, **NUMBERS)


class InterruptError(Exception):
    pass


def test_progress_and_the_cancel_button(
    pipeline: swiftmask.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def cancelled_after_two() -> None:
        if len(done) == 2:
            raise InterruptError

    utils, management, package = ModuleType("comfy.utils"), ModuleType("m"), ModuleType("comfy")
    bar: Any = ModuleType("bar")
    bar.update = done.append
    utils.ProgressBar = lambda total: bar  # type: ignore[attr-defined]
    management.throw_exception_if_processing_interrupted = cancelled_after_two  # type: ignore[attr-defined]
    for name, module in (("comfy", package), ("comfy.utils", utils), ("comfy.model_management", management)):
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(InterruptError):
        run("Generate", pipeline=pipeline, prompt="3", **NUMBERS)
    assert done == [1, 1]
