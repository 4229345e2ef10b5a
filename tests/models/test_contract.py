"""What every model folder owes (core/protocol.py: MaskedGenerator), on a tiny instance of each."""

import copy
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from swiftmask import pipeline as pipeline_module
from swiftmask.core.decode import FullFeatures
from swiftmask.core.protocol import MaskedGenerator, SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.core.types import Canvas
from swiftmask.evaluate.tuning.feature_drift import record_decode
from swiftmask.pipeline import Pipeline
from swiftmask.registry import model_names

TINY = {
    "lumina_dimoo": "golden_dimoo",
    "mar": "golden_mar",
    "maskgit": "golden_maskgit",
    "meissonic": "golden_meissonic",
}
"""The fixture of conftest.py that is a tiny random instance of each model folder."""

GUIDED = SamplingOptions(guidance=3.0)


@pytest.fixture(params=model_names())
def model(request: pytest.FixtureRequest) -> MaskedGenerator:
    assert request.param in TINY, f"models/{request.param} needs a tiny instance in tests/conftest.py"
    return request.getfixturevalue(TINY[request.param])


def conditions(model: MaskedGenerator, count: int) -> list:
    return [i % 2 for i in range(count)] if model.spec.draws == "class" else ["a red circle"] * count


def some_tokens(model: MaskedGenerator, batch: int, count: int) -> torch.Tensor:
    """Tokens no two of which are alike: codes [B, N], or real values [B, N, C]."""
    if model.spec.channels is None:
        return torch.arange(batch * count).unflatten(0, (batch, count))
    return torch.randn(batch, count, model.spec.channels)


def half_decided(model: MaskedGenerator, batch: int) -> Canvas:
    canvas = model.blank(batch)
    positions_BN = torch.arange(0, model.spec.num_tokens, 2).expand(batch, -1)
    return canvas.write(positions_BN, some_tokens(model, batch, positions_BN.shape[1]))


def test_the_folder_name_is_the_models_name(model):
    assert model.spec.name in model_names()
    assert type(model).__module__ == f"swiftmask.models.{model.spec.name}.generator"


def test_a_blank_canvas_is_all_masked(model):
    canvas = model.blank(3)
    assert canvas.masked_BL.shape == (3, model.spec.num_tokens)
    assert canvas.masked_BL.all()
    assert (canvas.tokens_BL == model.spec.mask_id).all()


def test_both_branches_in_one_forward_equal_two(model):
    canvas = half_decided(model, 2)
    condition = model.encode(conditions(model, 2))
    guided = model.with_null(condition)
    assert (condition.num_branches, guided.num_branches, len(guided)) == (1, 2, 2)
    one_GBTD, both_GBTD = model.features(canvas, condition), model.features(canvas, guided)
    assert one_GBTD.shape[0] == 1
    assert both_GBTD.shape[:2] == (2, 2)
    assert both_GBTD.shape[-1] == model.spec.width
    torch.testing.assert_close(one_GBTD[0], both_GBTD[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both_GBTD[0], both_GBTD[1])


def test_guidance_one_is_the_conditional_branch(model):
    canvas = half_decided(model, 2)
    features_GBTD = model.features(canvas, model.with_null(model.encode(conditions(model, 2))))
    positions_BM = canvas.masked_positions()[:, :3]
    noise = [SeededNoise([1, 2], model.spec.num_tokens) for _ in range(3)]
    (step,) = model.schedule(1, num_masked=3, options=SamplingOptions(temperature=1.0))
    alone, off, guided = (
        model.tokens(features, positions_BM, guidance).sample(n, step)
        for features, guidance, n in zip(
            (features_GBTD[:1], features_GBTD, features_GBTD), (1.0, 1.0, 4.0), noise, strict=True
        )
    )
    assert torch.equal(alone[0], off[0])
    if off[1] is None:
        assert not torch.allclose(off[0], guided[0])
    else:
        torch.testing.assert_close(alone[1], off[1])
        assert not torch.allclose(off[1], guided[1])


def test_the_head_reads_only_the_positions_it_is_asked_for(model):
    canvas = half_decided(model, 1)
    features_GBTD = model.features(canvas, model.encode(conditions(model, 1)))
    if not model.spec.has_log_prob:
        pytest.skip("this head cannot score")
    every_BM, some_BM = torch.arange(model.spec.num_tokens)[None], torch.tensor([[3, 1]])
    every = model.tokens(features_GBTD, every_BM, 1.0).log_prob(torch.zeros_like(every_BM), 1.0)
    some = model.tokens(features_GBTD, some_BM, 1.0).log_prob(torch.zeros_like(some_BM), 1.0)
    torch.testing.assert_close(every[:, [3, 1]], some)


def test_embeddings_belong_to_token_and_position(model):
    tokens_BN, positions_BN = some_tokens(model, 1, 2)[:, [0, 1, 0]], torch.tensor([[0, 3, 5]])
    embedded_BND = model.embed(tokens_BN, positions_BN)
    assert embedded_BND.shape == (1, 3, model.spec.width)
    torch.testing.assert_close(model.embed(tokens_BN[:, 1:2], positions_BN[:, 1:2]), embedded_BND[:, 1:2])
    assert not torch.allclose(embedded_BND[:, 0], embedded_BND[:, 2])


def test_a_whole_decode_reads_nothing_back_from_the_device(model):
    assert isinstance(model, nn.Module)
    pipeline = Pipeline(copy.deepcopy(model), sampling=GUIDED)
    assert pipeline.flops(pipeline.schedule(4)) > 0  # counted on the meta device, where any sync raises


def test_heads_share_one_rule_of_precision(model):
    """Features are mixed in float32 and rounded; the head reads them as it reads an unguided branch."""
    if not model.spec.has_log_prob:
        pytest.skip("this head is not linear: guidance mixes its outputs")
    low, canvas = copy.deepcopy(model).to(dtype=torch.bfloat16), half_decided(model, 2)
    features_GBTD = low.features(canvas, low.with_null(low.encode(conditions(model, 2))))
    assert features_GBTD.dtype == torch.bfloat16
    conditional_BTD, null_BTD = features_GBTD.float()
    mixed_GBTD = (null_BTD + 3.0 * (conditional_BTD - null_BTD)).bfloat16()[None]
    codes_BM, positions_BM = some_tokens(model, 2, 3), canvas.masked_positions()[:, :3]
    guided_BM = low.tokens(features_GBTD, positions_BM, 3.0).log_prob(codes_BM, 0.7)
    unguided_BM = low.tokens(mixed_GBTD, positions_BM, 1.0).log_prob(codes_BM, 0.7)
    assert guided_BM.dtype == torch.float32
    assert torch.equal(guided_BM, unguided_BM)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_give_no_images(value, model):
    """Neither those of the network nor those of the codec alone, which sees finite tokens."""
    asked = {"labels" if model.spec.draws == "class" else "prompts": conditions(model, 2)}
    for part in ("", "codec."):
        spoilt = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in spoilt.named_parameters():
                if name.startswith(part):
                    parameter.flatten()[0] = value
        with pytest.raises(FloatingPointError, match="in a decode in float32: the weights are damaged"):
            Pipeline(spoilt, sampling=GUIDED).generate(**asked, steps=3)


def test_images_are_in_range_and_a_function_of_the_seed(model):
    pipeline = Pipeline(model, sampling=GUIDED)
    what = {"labels" if model.spec.draws == "class" else "prompts": conditions(model, 3)}
    whole = pipeline.generate(**what, seeds=[5, 6, 7], steps=4, output_type="pt")
    assert isinstance(whole.images, torch.Tensor)
    assert whole.images.shape[:2] == (3, 3)
    assert 0 <= whole.images.min() <= whole.images.max() <= 1
    last = {key: value[2:] for key, value in what.items()}
    alone = pipeline.generate(**last, seeds=[7], steps=4, output_type="pt")
    ours, theirs = alone.trajectory.tokens_BL[0], whole.trajectory.tokens_BL[2]
    if model.spec.channels is None:
        assert torch.equal(ours, theirs)
    else:  # a matrix product of other sizes rounds otherwise, and real values show it
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_save_and_load_round_trip(model, tmp_path):
    assert isinstance(model, nn.Module)
    model.save_pretrained(tmp_path / "a", provenance={"recipe": "test"})
    again = type(model).from_pretrained(tmp_path / "a")
    assert again.spec == model.spec
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    again.save_pretrained(tmp_path / "b", provenance={"recipe": "test"})
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def tensors_of(value: object) -> Iterator[torch.Tensor]:
    """Every tensor in a condition."""
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
    elif isinstance(value, tuple):
        for entry in value:
            yield from tensors_of(entry)


class Watching:
    """The full model's features; keeps the conditions it was given."""

    name, settings = "backbone", ()

    def __init__(self, model: MaskedGenerator) -> None:
        self._full = FullFeatures(model)
        self.conditions: list[object] = []

    def __call__(self, canvas, condition, step, previous):
        self.conditions.append(condition)
        return self._full(canvas, condition, step, previous)


def test_prompts_are_encoded_without_a_graph(model):
    trained = copy.deepcopy(model).requires_grad_()
    what = {"labels" if model.spec.draws == "class" else "prompts": conditions(model, 2)}
    watching = Watching(trained)
    Pipeline(trained, features_fn=watching, sampling=GUIDED).generate(**what, steps=3)
    schedule = trained.schedule(3, num_masked=trained.spec.num_tokens, options=GUIDED)
    watching.conditions.append(record_decode(trained, conditions(model, 2), [0, 1], schedule).condition)
    found = [tensor for condition in watching.conditions for tensor in tensors_of(condition)]
    assert found
    assert not any(tensor.requires_grad for tensor in found)


def test_the_clock_starts_when_the_device_has_done_what_came_before(model, monkeypatch):
    events: list[str] = []
    now = pipeline_module.time.perf_counter
    monkeypatch.setattr(pipeline_module, "synchronise", lambda device: events.append("synchronise"))
    monkeypatch.setattr(
        pipeline_module.time, "perf_counter", lambda: (events.append("read the clock"), now())[1]
    )
    what = {"labels" if model.spec.draws == "class" else "prompts": conditions(model, 1)}
    Pipeline(model).generate(**what, steps=2)
    assert events == ["synchronise", "read the clock"] * 3


def test_loaded_weights_are_frozen_and_keep_their_steps(model, tmp_path: Path):
    trained = copy.deepcopy(model).requires_grad_()
    trained.steps = 7
    trained.save_pretrained(tmp_path, provenance={})
    again = type(model).from_pretrained(tmp_path)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert again.steps == Pipeline(again).steps == 7


def test_a_model_of_few_tokens_takes_no_more_steps_than_it_has(model):
    assert Pipeline(model).steps == min(model.steps, model.spec.num_tokens)
