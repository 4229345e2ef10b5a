"""What `generate` and `accelerate` take and refuse: errors name the argument, the range and what was got."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import swiftmask
from swiftmask.core.protocol import SamplingOptions
from swiftmask.methods.marval import make_student, write_student
from swiftmask.methods.shortcut import Shortcut, ShortcutConfig
from swiftmask.models.mar import MAR
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.meissonic import Meissonic


@pytest.fixture
def tiny(tiny_folder: Path) -> swiftmask.Pipeline:
    return swiftmask.load(tiny_folder)


@pytest.fixture
def painter(golden_meissonic: Meissonic) -> swiftmask.Pipeline:
    return swiftmask.Pipeline(golden_meissonic, name="painter", steps=2)


WRONG: list[dict[str, Any]] = [
    *({"seeds": [seed]} for seed in (-1, 2**64, 1.7, True, "0", None, math.nan)),
    *({"steps": steps} for steps in (0, -4, True, 2.0, "4", math.nan, 10**9)),
    *({"guidance": scale} for scale in (0, 0.5, -3.0, math.nan, math.inf, 1e9, True, "2")),
    *({"output_type": kind} for kind in ("pill", "PIL", "", None, 1)),
    *({"size": size} for size in (1024, 0, -8, True, (8,), (8, 8, 8), 8.0, "8", "88", math.nan, {8})),
    {"negative_prompt": "blur"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_argument_is_named(tiny: swiftmask.Pipeline, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        tiny.generate([0], **wrong)


WRONG_TYPES: list[dict[str, Any]] = [
    *({"seeds": seeds} for seeds in (1.7, True, 0, "0", b"0", {0}, {0: 1})),
    *({"on_step": function} for function in (1, "x")),
    *({"sampling": options} for options in ({}, "x", {"temperature": 1})),
    *({"canvas": canvas} for canvas in (1, "x", torch.zeros(1, 16))),
]


@pytest.mark.parametrize("wrong", WRONG_TYPES, ids=str)
def test_an_argument_of_another_type_is_named(tiny: swiftmask.Pipeline, wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(wrong))} must be"):
        tiny.generate([0], **wrong)


@pytest.mark.parametrize("labels", [0, {0}, {0: 1}, b"0", 1.5, True])
def test_labels_are_a_list(tiny: swiftmask.Pipeline, labels: Any) -> None:
    with pytest.raises(TypeError, match="^labels must be a list of classes"):
        tiny.generate(labels)


@pytest.mark.parametrize("wrong", [1, None, ["a"], b"a", True])
def test_prompts_are_texts(painter: swiftmask.Pipeline, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^prompts\[1\] must be a text, got"):
        painter.generate(prompts=["a red circle", wrong])
    with pytest.raises(TypeError, match="^negative_prompt must be a "):
        painter.generate(prompts=["a red circle"], negative_prompt=[wrong])
    for none in (0, {"a"}, {"a": 1}, b"a"):
        with pytest.raises(TypeError, match="^prompts must be a list of texts"):
            painter.generate(prompts=none)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^prompts\[0\] is empty"):
        painter.generate(prompts=[" "])


def test_a_canvas_of_another_batch_or_model_is_refused(tiny: swiftmask.Pipeline) -> None:
    with pytest.raises(ValueError, match=r"^canvas must have tokens of shape \(1, .*got \(2, "):
        tiny.generate([0], canvas=tiny.model.blank(2))
    with pytest.raises(TypeError, match="^image must be a PIL image"):
        tiny.start_canvas("a.png")  # type: ignore[arg-type]
    small = Image.new("RGB", (2, 2))
    with pytest.raises(TypeError, match="^mask must be a PIL image"):
        tiny.start_canvas(small, "a.png")  # type: ignore[arg-type]
    for count in (0, -1, 1.5, True, "2"):
        with pytest.raises(ValueError, match="^count must be a whole number"):
            tiny.start_canvas(small, count=count)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [1, True, b"x", ["x"]])
def test_sources_are_names_or_paths(tiny: swiftmask.Pipeline, wrong: Any) -> None:
    with pytest.raises(TypeError, match="^source must be a name or a path"):
        swiftmask.load(wrong)
    for name in ("codec", "text_encoder"):
        with pytest.raises(TypeError, match=f"^{name} must be a name or a path"):
            swiftmask.load("maskgit-scenes", **{name: wrong})
    for name in ("shortcut", "marval", "speed_rl", "caching"):
        with pytest.raises(TypeError, match=f"^{name} must be a name"):
            swiftmask.accelerate(tiny, **{name: wrong})
    with pytest.raises(TypeError, match="^pipeline must be what load"):
        swiftmask.accelerate(wrong, caching="reuse")


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool, 1, True])
def test_weights_are_floats(dtype: Any) -> None:
    with pytest.raises(ValueError, match="^dtype must be float32, bfloat16 or float16"):
        swiftmask.load("maskgit-scenes", dtype=dtype)


def test_odd_sources() -> None:
    with pytest.raises(ValueError, match="no file has a name of 5000 letters"):
        swiftmask.load("x" * 5000)
    with pytest.raises(ValueError, match="^unknown device 'None'"):
        swiftmask.load("maskgit-scenes", device=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["temperature", "choice_temperature", "schedule_power", "guidance"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e9, True, "1"])
def test_a_wrong_sampling_option_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} must be a number"):
        SamplingOptions(**{field: value})


def test_nothing_is_said(tiny: swiftmask.Pipeline, painter: swiftmask.Pipeline) -> None:
    with pytest.raises(ValueError, match="nothing to generate"):
        tiny.generate([])
    with pytest.raises(ValueError, match="nothing to generate"):
        painter.generate(prompts=[])
    with pytest.raises(ValueError, match=r"one string: write \['3'\]"):
        tiny.generate("3")


def test_guidance_and_sampling_go_over_the_pipelines(tiny: swiftmask.Pipeline) -> None:
    """A call's own, `guidance` over `sampling`, over the pipeline's."""

    def drawn(pipeline: swiftmask.Pipeline, **given: Any) -> list[int]:
        return pipeline.generate([1], steps=4, **given).trajectory.tokens_BL.flatten().tolist()

    other = SamplingOptions(guidance=9.0, temperature=0.5)
    assert drawn(tiny, sampling=other, guidance=4.0) == drawn(
        replace(tiny, sampling=SamplingOptions(guidance=4.0, temperature=0.5))
    )
    assert drawn(replace(tiny, sampling=other), guidance=4.0) == drawn(tiny, sampling=other, guidance=4.0)
    assert tiny.generate([1], steps=4, guidance=1).cost.calls["branches"] == 1
    with pytest.raises(ValueError, match=r"temperature must be a number between 0.001 and 100, got 0"):
        drawn(tiny, sampling=SamplingOptions(temperature=0.0))


def test_a_negative_prompt_needs_guidance(painter: swiftmask.Pipeline) -> None:
    first = painter.generate(prompts=["a red circle"], guidance=9.0)
    other = painter.generate(prompts=["a red circle"], guidance=9.0, negative_prompt="blue")
    assert not first.trajectory.tokens_BL.equal(other.trajectory.tokens_BL)
    with pytest.raises(ValueError, match="negative_prompt needs guidance"):
        painter.generate(prompts=["a red circle"], guidance=1.0, negative_prompt="blue")


def test_sizes_that_no_training_has_shown_are_refused(painter: swiftmask.Pipeline) -> None:
    height, width = painter.image_size()
    result = painter.generate(prompts=["a red circle"], size=(2 * height, width), output_type="pt")
    assert not isinstance(result.images, list)
    assert result.images.shape[-2:] == (2 * height, width)
    for size in (1024, (height, 4 * width), 1):
        with pytest.raises(ValueError, match=rf"(height|width) must be .*made for {height}x{width} pixels"):
            painter.generate(prompts=["a red circle"], size=size)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_default_full_steps_fit_any_decode(tiny: swiftmask.Pipeline, steps: int) -> None:
    fast = swiftmask.accelerate(tiny, caching="reuse")
    assert sum(step.full for step in fast.schedule(steps)) == max(1, min(tiny.steps // 2, steps // 2))
    asked = swiftmask.accelerate(tiny, caching="reuse", full_steps=4)
    if steps < 4:
        with pytest.raises(ValueError, match=rf"full steps must be between 1 and .*\({steps}\)"):
            asked.schedule(steps)
    else:
        assert sum(step.full for step in asked.schedule(steps)) == 4


@pytest.mark.parametrize("full_steps", [0, -1, True, 1.5, "2", [], [1], [0, 1.5], [True], [-1]])
def test_wrong_full_steps(tiny: swiftmask.Pipeline, full_steps: Any) -> None:
    with pytest.raises(ValueError, match="full_steps"):
        swiftmask.accelerate(tiny, caching="reuse", full_steps=full_steps)


def test_a_shortcut_of_another_width_says_both(tiny: swiftmask.Pipeline) -> None:
    other = Shortcut(ShortcutConfig(width=96, bottleneck_width=32, num_heads=4))
    with pytest.raises(ValueError, match=f"width 96, but maskgit has width {tiny.model.spec.width}"):
        swiftmask.accelerate(tiny, shortcut=other)


def test_a_base_is_not_its_own_student(golden_mar: MAR, golden_maskgit: MaskGIT, tmp_path: Path) -> None:
    """The weights tell: what was not trained is the base."""
    mar = swiftmask.Pipeline(golden_mar, name="mar")
    student = make_student(golden_mar, golden_mar.network_parameters(), timestep=500)
    write_student(tmp_path / "student", student, provenance={})
    with pytest.raises(ValueError, match="holds the weights of mar itself: expected a student"):
        swiftmask.accelerate(mar, marval=tmp_path / "student")
    golden_maskgit.save_pretrained(tmp_path / "base", provenance={})
    base = swiftmask.load(tmp_path / "base")
    with pytest.raises(ValueError, match="holds the weights of base itself: expected what Speed-RL tuned"):
        swiftmask.accelerate(base, speed_rl=tmp_path / "base")
    with pytest.raises(ValueError, match="holds a maskgit model, no MARVAL student"):
        swiftmask.accelerate(mar, marval=tmp_path / "base")
    with pytest.raises(ValueError, match="accelerate"):
        swiftmask.load(tmp_path / "student")
