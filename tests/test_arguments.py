"""What `generate` and `accelerate` take and refuse: errors name the argument, the range and what was got."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import swiftmask
from swiftmask.core.protocol import SamplingOptions
from swiftmask.methods.marval import make_student, network_parameters, write_student
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
    *({"size": size} for size in (1024, 0, -8, True, (8,), (8, 8, 8))),
    {"negative_prompt": "blur"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_argument_is_named(tiny: swiftmask.Pipeline, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        tiny.generate([0], **wrong)


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
    height, width = painter.picture_size()
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
    with pytest.raises(ValueError, match=f"width 96, and tiny has width {tiny.model.spec.width}"):
        swiftmask.accelerate(tiny, shortcut=other)


def test_a_base_is_not_its_own_student(golden_mar: MAR, golden_maskgit: MaskGIT, tmp_path: Path) -> None:
    """The weights tell: what was not trained is the base."""
    mar = swiftmask.Pipeline(golden_mar, name="mar")
    student = make_student(golden_mar, network_parameters(golden_mar), timestep=500)
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
