"""Runs that are stopped, and guidance that changes while they run."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from swiftmask.api import accelerate
from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.rng import SeededNoise, ShapesOfNoise
from swiftmask.core.steering import Steer, Steered
from swiftmask.core.types import Record
from swiftmask.methods.marval import make_student
from swiftmask.pipeline import Pipeline

FAMILIES = ("maskgit", "mar", "meissonic", "dimoo")
STEPS = 5
SEEDS = [2**64 - 1, 7]


@pytest.fixture(params=FAMILIES)
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    model = request.getfixturevalue(f"golden_{request.param}")
    return Pipeline(model, name=request.param, steps=STEPS, sampling=SamplingOptions(guidance=3.0))


def asked(pipeline: Pipeline) -> dict[str, Any]:
    of_class = pipeline.model.spec.draws == "class"
    what = {"labels": [0, 1]} if of_class else {"prompts": ["red circle", "a"]}
    return {**what, "seeds": SEEDS}


class At:
    """An `on_step` that returns `steer` at one step."""

    def __init__(self, index: int, steer: Steer) -> None:
        self.records: list[Record] = []
        self._index, self._steer = index, steer

    def __call__(self, record: Record) -> Steer | None:
        self.records.append(record)
        return self._steer if record.step.index == self._index else None


def test_a_stopped_run_leaves_the_canvas_of_that_step(pipeline: Pipeline) -> None:
    whole = At(99, Steer())
    pipeline.generate(**asked(pipeline), on_step=whole)
    stop = At(2, Steer(stop=True))
    result = pipeline.generate(**asked(pipeline), on_step=stop)
    there = whole.records[2].after
    assert result.stopped
    assert len(stop.records) == 3
    assert torch.equal(result.trajectory.canvas.tokens_BL, there.tokens_BL)
    assert torch.equal(result.trajectory.canvas.masked_BL, there.masked_BL)
    assert result.trajectory.canvas.num_masked == there.num_masked == result.trajectory.num_masked > 0
    for record in whole.records[:3]:
        then = result.trajectory.canvas_at(record.step)
        assert torch.equal(then.masked_BL, record.before.masked_BL)
        assert torch.equal(then.tokens_BL, record.before.tokens_BL)
    assert (result.cost.calls["backbone"], result.cost.calls["branches"]) == (3, 2)
    schedule = pipeline.schedule()
    assert result.cost.flops == sum(pipeline.chain_flops(schedule)[:3])


def test_undecided_tokens_are_grey_and_a_stopped_run_goes_on(pipeline: Pipeline) -> None:
    result = pipeline.generate(**asked(pipeline), on_step=At(1, Steer(stop=True)), output_type="pt")
    canvas = result.trajectory.canvas
    rows, columns = pipeline.model.spec.grid
    assert isinstance(result.images, torch.Tensor)
    cells = result.images.unflatten(2, (rows, -1)).unflatten(4, (columns, -1)).movedim(4, 3)
    grey_BL = (cells == 0.5).all(dim=-1).all(dim=-1).all(dim=1).flatten(1)
    assert torch.equal(grey_BL, canvas.masked_BL)
    finished = pipeline.generate(**asked(pipeline), canvas=canvas, steps=2)
    kept = ~canvas.masked_BL
    assert torch.equal(finished.trajectory.tokens_BL[kept], canvas.tokens_BL[kept])
    assert not finished.stopped


def test_stopping_at_the_last_step_changes_nothing(golden_maskgit: Any) -> None:
    pipeline = Pipeline(golden_maskgit, steps=STEPS)
    plain = pipeline.generate([3])
    last = pipeline.generate([3], on_step=At(STEPS - 1, Steer(stop=True)))
    assert not last.stopped
    assert np.array_equal(np.array(last.images[0]), np.array(plain.images[0]))
    assert last.cost.calls == plain.cost.calls


def test_guidance_of_the_steps_to_come(pipeline: Pipeline) -> None:
    """A run whose guidance changes equals a run of both schedules put together."""
    model, wide = pipeline.model, replace(pipeline, sampling=SamplingOptions(guidance=9.0))
    steer = At(1, Steer(guidance=9.0))
    result = pipeline.generate(**asked(pipeline), on_step=steer)
    schedule = [*pipeline.schedule()[:2], *wide.schedule()[2:]]
    assert [record.step for record in steer.records] == schedule
    assert schedule != pipeline.schedule()
    what: Any = next(iter(asked(pipeline).values()))
    with torch.no_grad():
        canvas, noise = model.blank(2), SeededNoise(SEEDS, model.spec.num_tokens)
        expected = decode(
            model,
            prepare_condition(model, model.encode(what), schedule),
            schedule,
            noise,
            canvas=canvas,
            features_fn=FullFeatures(model),
            unmask=model.unmask_rule(canvas, noise),
        )
    assert torch.equal(result.trajectory.tokens_BL, expected.tokens_BL)
    assert not torch.equal(
        result.trajectory.tokens_BL, pipeline.generate(**asked(pipeline)).trajectory.tokens_BL
    )


def test_guidance_may_end_and_the_cost_keeps_both_branches(golden_maskgit: Any) -> None:
    """MaskGIT's first step is unguided in any case, so that no guided step runs at all."""
    pipeline = Pipeline(golden_maskgit, steps=STEPS, sampling=SamplingOptions(guidance=3.0))
    result = pipeline.generate([3], on_step=At(0, Steer(guidance=1.0)))
    plain = pipeline.generate([3], guidance=1.0)
    assert torch.equal(result.trajectory.tokens_BL, plain.trajectory.tokens_BL)
    assert (result.cost.calls["branches"], plain.cost.calls["branches"]) == (2, 1)
    assert result.cost.flops > 1.5 * plain.cost.flops


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (Steer(guidance=2.0), ValueError, "cannot start within a run that began at 1"),
        (True, TypeError, "on_step must return None or a Steer, got True"),
        (3.0, TypeError, "on_step must return None or a Steer, got 3.0"),
    ],
)
def test_what_cannot_work_is_refused(
    answer: Any, error: type[Exception], message: str, golden_maskgit: Any
) -> None:
    pipeline = Pipeline(golden_maskgit, steps=STEPS, sampling=SamplingOptions(guidance=1.0))
    with pytest.raises(error, match=message):
        pipeline.generate([3], on_step=lambda record: answer)


@pytest.mark.parametrize("guidance", [0.5, float("nan"), 1000, "3"])
def test_guidance_out_of_range_is_refused(guidance: Any) -> None:
    with pytest.raises(ValueError, match="guidance must be"):
        Steer(guidance=guidance)
    with pytest.raises(TypeError, match="stop must be True or False"):
        Steer(stop=guidance)


def test_a_student_has_no_guidance_to_change(golden_mar: Any) -> None:
    teacher = copy.deepcopy(golden_mar)
    student = make_student(teacher, teacher.network_parameters())
    pipeline = accelerate(Pipeline(teacher, steps=STEPS), marval=student)
    with pytest.raises(ValueError, match="cannot start within a run"):
        pipeline.generate([1], on_step=lambda record: Steer(guidance=2.0))


def test_steering_reads_nothing_back_from_the_device(pipeline: Pipeline) -> None:
    """On the meta device whatever reads a value raises."""
    model = copy.deepcopy(pipeline.model).to("meta")  # type: ignore[attr-defined]
    shadow = replace(pipeline, model=model)
    schedule = shadow.schedule()
    steers = iter([Steer(guidance=5.0), Steer(guidance=1.0), Steer(stop=True)])
    steered = Steered(
        lambda record: next(steers),
        guided=True,
        replanned=lambda guidance: replace(shadow, sampling=SamplingOptions(guidance=guidance)).schedule(),
    )
    what: Any = next(iter(asked(pipeline).values()))
    with torch.no_grad():
        trajectory = decode(
            model,
            prepare_condition(model, model.encode(what), schedule),
            schedule,
            ShapesOfNoise(),
            canvas=model.blank(2),
            features_fn=FullFeatures(model),
            unmask=model.unmask_rule(model.blank(2), ShapesOfNoise()),
            on_step=steered,
        )
    assert [step.index for step in steered.ran] == [0, 1, 2]
    assert trajectory.canvas.num_masked == schedule[3].num_masked_before
    assert trajectory.canvas.masked_BL.is_meta
