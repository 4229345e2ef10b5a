"""Compiled blocks: the same tokens, compiled once, and nothing else changed.

Backends that only count stand in for inductor, but for one test.
"""

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from swiftmask.api import accelerate, load
from swiftmask.core.compiled import MODES, MarkedSteps, compile_blocks, mode_of
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.steering import Steer
from swiftmask.methods.marval import make_student
from swiftmask.methods.shortcut import RotaryShortcut, RotaryShortcutConfig, Shortcut, ShortcutConfig
from swiftmask.pipeline import Pipeline

PROMPTS = ("a red circle", "a", "blue", "red circle a blue", "circle red", "a circle", "red")
LABELS = (0, 1, 2, 3, 4, 0, 1)
FIRST = {"maskgit": slice(0, 3), "mar": slice(0, 3), "meissonic": slice(0, 4), "dimoo": slice(0, 3)}
"""Images of the first decode. Meissonic's four, with guidance, are as many rows as another of its sizes."""

NUM_COMPILATIONS = {"maskgit": 2, "mar": 2, "meissonic": 2, "dimoo": 1}
"""One for each class of block; MaskGIT's first block, whose input is a view, has another one for itself."""


@pytest.fixture(autouse=True)
def _compile_anew() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def pipelines(request) -> Callable[[str], Pipeline]:
    def make(family: str) -> Pipeline:
        model: Any = copy.deepcopy(request.getfixturevalue(f"golden_{family}"))
        return Pipeline(model, name=family, steps=5)

    return make


def accelerators(pipeline: Pipeline) -> list[Pipeline]:
    """A shortcut, and a MARVAL student where there is a diffusion head."""
    spec, model = pipeline.model.spec, pipeline.model
    sizes: dict[str, Any] = {"width": spec.width, "bottleneck_width": 16, "num_heads": 2}
    shortcut: Any = Shortcut(ShortcutConfig(**sizes)).eval().requires_grad_(False)
    if hasattr(model, "fresh_tokens"):
        shortcut = RotaryShortcut(RotaryShortcutConfig(**sizes, mlp_width=24)).eval().requires_grad_(False)
    made = [accelerate(pipeline, shortcut=shortcut, full_steps=2)]
    if hasattr(model, "denoise"):
        teacher: Any = model
        made.append(accelerate(pipeline, marval=make_student(teacher, teacher.network_parameters())))
    return made


def draw(pipeline: Pipeline, which: slice, **options: Any):
    """Tokens of some of the prompts or classes."""
    drawn = pipeline.model.spec.draws
    asked: Any = {"labels": LABELS[which]} if drawn == "class" else {"prompts": PROMPTS[which]}
    return pipeline.generate(**asked, output_type="pt", **options).trajectory.tokens_BL


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Codes exactly; continuous tokens as far as another order of the same sums allows."""
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def compiled(pipeline: Pipeline, backend: Any) -> Pipeline:
    for part in (pipeline.model, pipeline.features_fn):
        compile_blocks(part, "default", backend=backend)
    return replace(pipeline, compile_mode="default")


@pytest.mark.parametrize("family", NUM_COMPILATIONS)
def test_the_first_decode_compiles_each_class_of_block_and_later_ones_nothing(family, pipelines) -> None:
    eager, counter, first = pipelines(family), CompileCounter(), FIRST[family]
    fast = compiled(pipelines(family), counter)
    same(draw(fast, first), draw(eager, first))
    assert counter.frame_count == NUM_COMPILATIONS[family]
    for which, steps in ((slice(2, 7), 5), (slice(1, 4), 5), (first, 7)):
        same(draw(fast, which, steps=steps), draw(eager, which, steps=steps))
    assert counter.frame_count == NUM_COMPILATIONS[family]
    assert not counters["graph_break"]


def test_guidance_that_changes_within_a_decode_compiles_nothing(pipelines) -> None:
    eager, counter = pipelines("maskgit"), CompileCounter()
    fast = compiled(pipelines("maskgit"), counter)
    draw(fast, FIRST["maskgit"])
    before = counter.frame_count
    for steer in (Steer(guidance=9.0), Steer(guidance=1.0), Steer(stop=True)):

        def on_step(record, steer=steer):
            return steer if record.step.index == 2 else None

        first = FIRST["maskgit"]
        same(draw(fast, first, on_step=on_step), draw(eager, first, on_step=on_step))
    assert counter.frame_count == before > 0


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("first", [(1, 2), (0, 1, 4)], ids=["equal lengths", "different lengths"])
def test_prompts_of_other_lengths_compile_nothing(first, guidance, pipelines) -> None:
    sampling, counter = SamplingOptions(guidance=guidance), CompileCounter()
    eager = replace(pipelines("dimoo"), sampling=sampling)
    fast = compiled(replace(pipelines("dimoo"), sampling=sampling), counter)
    for chosen in (first, (0, 3, 4, 5), (5, 4), (1, 2, 6), (3, 1)):
        prompts = [PROMPTS[index] for index in chosen]
        one, other = (each.generate(prompts=prompts) for each in (fast, eager))
        same(one.trajectory.tokens_BL, other.trajectory.tokens_BL)
        assert counter.frame_count == 1, chosen
    assert not counters["graph_break"]


@pytest.mark.parametrize("family", NUM_COMPILATIONS)
def test_accelerators_draw_the_same_and_compile_in_the_first_decode_alone(family, pipelines) -> None:
    for eager in accelerators(pipelines(family)):
        counter, first = CompileCounter(), FIRST[family]
        fast = compiled(copy.deepcopy(eager), counter)
        same(draw(fast, first), draw(eager, first))
        in_first = counter.frame_count
        same(draw(fast, slice(2, 7)), draw(eager, slice(2, 7)))
        assert counter.frame_count == in_first > 0
        assert not counters["graph_break"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler: g++ was not found")
def test_inductor_draws_the_tokens_of_eager_blocks(pipelines) -> None:
    eager = pipelines("maskgit")
    same(draw(pipelines("maskgit").compiled(), slice(0, 3)), draw(eager, slice(0, 3)))


@pytest.mark.parametrize("family", NUM_COMPILATIONS)
def test_names_copies_and_counted_operations_stay_as_they_are(family, pipelines) -> None:
    eager, fast = pipelines(family), compiled(pipelines(family), "eager")
    model: Any = fast.model
    assert list(model.state_dict()) == list(eager.model.state_dict())
    schedule = eager.schedule()
    assert fast.flops(schedule) == eager.flops(schedule)
    assert not counters["stats"], "counting operations compiled something"
    assert num_compiled(model) > 0
    assert num_compiled(copy.deepcopy(model)) == 0


def test_compiled_blocks_train_as_eager_ones(pipelines) -> None:
    gradients = []
    for pipeline in (pipelines("maskgit"), compiled(pipelines("maskgit"), "eager")):
        transformer: Any = pipeline.model.requires_grad_(True).transformer
        transformer(torch.zeros(2, 17, dtype=torch.int64)).square().sum().backward()
        gradients.append([parameter.grad for parameter in transformer.transformer.parameters()])
    for eager, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-4)  # sums of 34 in another order


def test_what_accelerates_a_compiled_pipeline_is_compiled(pipelines) -> None:
    for family in ("maskgit", "mar", "dimoo"):
        pipeline = pipelines(family).compiled("max-autotune")
        for fast in accelerators(pipeline):
            assert fast.compile_mode == "max-autotune"
            part: Any = fast.model if fast.features_fn is None else fast.features_fn.shortcut
            assert num_compiled(part) > 0


def test_load_takes_a_mode_and_names_those_there_are() -> None:
    assert load("maskgit-scenes").compile_mode is None
    fast = load("maskgit-scenes", compile="max-autotune")
    assert fast.compile_mode == "max-autotune"
    assert num_compiled(fast.model) == 8
    with pytest.raises(ValueError, match="unknown compile mode 'fastest': use True or one of default, "):
        load("no-such-model", compile="fastest")
    with pytest.raises(ValueError, match="leave out compile, or blocks_on_device"):
        load("dimoo-scenes", compile=True, blocks_on_device=1)
    assert [mode_of(mode) for mode in (False, True, *MODES)] == [None, "default", *MODES]


def test_cuda_graphs_are_for_blocks_that_run_once_a_step(pipelines, monkeypatch) -> None:
    asked: dict[nn.Module, Any] = {}
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: asked.update({self: options}))
    pipeline = pipelines("mar").compiled("max-autotune")
    network: Any = pipeline.model.network
    assert {asked[block]["mode"] for block in network.encoder_blocks} == {"max-autotune"}
    assert {asked[block]["mode"] for block in network.head.res_blocks} == {"max-autotune-no-cudagraphs"}
    assert isinstance(pipeline.step_features, MarkedSteps)
    assert not isinstance(replace(pipeline, compile_mode="default").step_features, MarkedSteps)


def test_every_step_of_a_decode_with_cuda_graphs_is_marked(pipelines, monkeypatch) -> None:
    marks: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(len(marks)))
    pipeline = replace(pipelines("maskgit"), compile_mode="reduce-overhead")
    draw(pipeline, slice(0, 2))
    assert len(marks) == 5


def num_compiled(module: nn.Module) -> int:
    return sum(part._compiled_call_impl is not None for part in module.modules())
