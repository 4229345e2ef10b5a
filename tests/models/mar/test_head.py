"""The diffusion head: its sampler gives the straightforward one's numbers and the right distribution."""

import copy
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from verify.kinds.mar import RecordedNormals

from swiftmask.api import load
from swiftmask.core.rng import SeededNoise
from swiftmask.core.transformer import sinusoid
from swiftmask.core.types import Denoising, Step
from swiftmask.models.mar import MAR
from swiftmask.models.mar import head as h
from swiftmask.models.mar.diffusion import AncestralStep, ReverseStep, reverse_chain, training_process
from swiftmask.models.mar.network import Network
from swiftmask.pipeline import Pipeline

B, M, C, WIDTH = 2, 3, 4, 48
PLACES_BM = torch.arange(M).expand(B, M)


@pytest.fixture
def head(network: Network) -> h.HeadNetwork:
    return network.head.requires_grad_(False)


@pytest.fixture(scope="module")
def straightforward() -> Iterator[ModuleType]:
    path = Path(__file__).parents[3] / "benchmarks" / "mar_straightforward.py"
    spec = importlib.util.spec_from_file_location("mar_straightforward", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def step_of(num_steps: int, *, temperature: float = 1.0, deterministic: bool = False) -> Step:
    denoising = Denoising(num_steps=num_steps, deterministic=deterministic)
    return Step(
        index=0, num_masked_before=M, num_masked_after=0, temperature=temperature, denoising=denoising
    )


def recorded(count: int) -> list[Tensor]:
    return [torch.randn(B * M, C) for _ in range(count)]


@pytest.mark.parametrize(("guidance", "branches"), [(1.0, 1), (3.5, 2)])
@torch.no_grad()
def test_equal_to_the_straightforward_sampler(head, straightforward, guidance, branches) -> None:
    """Also where modulations and noise come in several portions."""
    context_GBMD, draws = torch.randn(branches, B, M, WIDTH), recorded(60)
    step = step_of(60, temperature=0.9)
    ours = h.DiffusionTokens(head, context_GBMD, PLACES_BM, guidance).sample(
        RecordedNormals(iter(draws)), step
    )
    theirs = straightforward.StraightforwardTokens(head, context_GBMD, PLACES_BM, guidance).sample(
        RecordedNormals(iter(draws)), step
    )
    assert ours[0].shape == (B, M, C)
    assert ours[1] is None
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-5 * float(theirs[0].abs().max()))


def test_the_benchmark_runs(straightforward, model, tmp_path, monkeypatch) -> None:
    row = straightforward.measure(
        model,
        batch=2,
        num_steps=4,
        num_denoising=3,
        timed=[1],
        repeats=1,
    )
    assert row.head_ratio == pytest.approx(row.straightforward_ms / row.ours_ms)
    monkeypatch.setattr(straightforward, "random_pipeline", lambda name: Pipeline(model))
    arguments = (
        "--batch 1 --dtype bfloat16 --ar-steps 4 --steps 1 2 --denoising-steps 3 --repeats 1 --json".split()
    )
    monkeypatch.setattr(sys, "argv", ["mar_straightforward.py", *arguments, str(tmp_path / "out.json")])
    straightforward.main()
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["dtype"] == "bfloat16"
    student_ms = row["student_ms"] + row["student_backbone_ms"]
    assert row["student_ratio"] == pytest.approx((row["ours_ms"] + row["backbone_ms"]) / student_ms)


class PerfectHead(nn.Module):
    """The best possible head for tokens drawn from N(m, 0.5^2), with m the context's first entry."""

    channels = C

    def __init__(self) -> None:
        super().__init__()
        self.input_proj = nn.Linear(1, 1)
        self.cond_embed = nn.Identity()

    def embed_chain(self, chain: Sequence[ReverseStep]) -> Tensor:
        return 1000 * torch.tensor([[step.timestep] for step in chain], dtype=torch.float64)

    def modulate(self, embedded_XW: Tensor) -> Tensor:
        return embedded_XW[..., None, :]

    def predict(self, noisy_XC: Tensor, modulation_XKW: Tensor) -> Tensor:
        timesteps = (modulation_XKW[..., 0, :] / 1000).round()
        mean = modulation_XKW[..., 0, :] - 1000 * timesteps
        signal = training_process().signal_S[timesteps.long()]
        spread = signal * 0.25 + 1 - signal
        noise = (1 - signal).sqrt() * (noisy_XC - signal.sqrt() * mean) / spread
        return torch.cat([noise, torch.ones_like(noise)], dim=-1)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_perfect_head_gives_the_distribution_it_knows(deterministic: bool) -> None:
    """Under guidance the mean moves past the conditional one: null + g (conditional - null).

    DDIM starts at timestep 980, where 3 % of the signal is left, which a start from pure noise lacks.
    """
    places_BM = torch.arange(500).expand(4, 500)
    context_GBMD = torch.stack([torch.full((4, 500, 1), 0.8), torch.full((4, 500, 1), 0.2)])
    step = step_of(100, deterministic=deterministic)
    for guidance, mean in ((1.0, 0.8), (3.0, 2.0)):
        tokens = h.DiffusionTokens(PerfectHead(), context_GBMD, places_BM, guidance)  # type: ignore[arg-type]
        drawn_BMC, _ = tokens.sample(SeededNoise(range(4), 500), step)
        assert drawn_BMC.mean().item() == pytest.approx(mean, abs=0.04)
        assert drawn_BMC.std().item() == pytest.approx(0.5, abs=0.03)
        correlation = torch.corrcoef(drawn_BMC.flatten(0, 1).T) - torch.eye(C)
        assert correlation.abs().max() < 0.1


@pytest.mark.parametrize("deterministic", [False, True])
def test_temperature_narrows(deterministic: bool) -> None:
    places_BM = torch.arange(500).expand(4, 500)
    tokens = h.DiffusionTokens(PerfectHead(), torch.zeros(1, 4, 500, 1), places_BM, 1.0)  # type: ignore[arg-type]
    spread = []
    for temperature in (0.5, 1.0):
        step = step_of(25, temperature=temperature, deterministic=deterministic)
        spread.append(tokens.sample(SeededNoise(range(4), 500), step)[0].std().item())
    assert spread[0] < 0.8 * spread[1]


@torch.no_grad()
def test_a_token_depends_on_its_own_image_and_place(head) -> None:
    """Not on the batch, nor on which other places are sampled with it."""
    context_1BLD = torch.randn(1, 3, 8, WIDTH)
    step, every_BL = step_of(30), torch.arange(8).expand(3, 8)
    whole_BLC, _ = h.DiffusionTokens(head, context_1BLD, every_BL, 1.0).sample(
        SeededNoise([5, 6, 7], 8), step
    )
    places_BM = torch.tensor([[6, 1]])
    alone = h.DiffusionTokens(head, context_1BLD[:, 1:2, [6, 1]], places_BM, 1.0)
    alone_BMC, _ = alone.sample(SeededNoise([6], 8), step)
    largest = float(whole_BLC.abs().max())
    torch.testing.assert_close(alone_BMC[0], whole_BLC[1, [6, 1]], rtol=0, atol=1e-5 * largest)


@torch.no_grad()
def test_one_is_the_conditional_branch(head) -> None:
    context_GBMD = torch.randn(2, B, M, WIDTH)
    both, one, guided = (
        h.DiffusionTokens(head, context, PLACES_BM, guidance).sample(SeededNoise([1, 2], M), step_of(5))[0]
        for context, guidance in ((context_GBMD, 1.0), (context_GBMD[:1], 1.0), (context_GBMD, 1.01))
    )
    torch.testing.assert_close(both, one, rtol=0, atol=1e-5 * float(one.abs().max()))
    assert not torch.allclose(guided, one)


@torch.no_grad()
def test_bfloat16_keeps_the_chain_in_float32(head) -> None:
    low = copy.deepcopy(head).bfloat16()
    context_1BMD = torch.randn(1, B, M, WIDTH)
    step = step_of(10, deterministic=True)
    high_BMC, low_BMC = (
        h.DiffusionTokens(net, context_1BMD, PLACES_BM, 1.0).sample(SeededNoise([1, 2], M), step)[0]
        for net in (head, low)
    )
    assert low_BMC.dtype == torch.float32
    assert (low_BMC - high_BMC).abs().max() < 0.1 * high_BMC.abs().max()


@torch.no_grad()
def test_projections_are_in_float32_whatever_the_dtype(head) -> None:
    """A change of the noisy token too small for bfloat16 arrives, and what comes out is not rounded to it."""
    low = copy.deepcopy(head).bfloat16()
    noisy_XC, timesteps_X, context_XD = torch.ones(3, C), torch.full((3,), 999), torch.randn(3, WIDTH)
    modulation_XKW = low.modulate(low.embed_time(timesteps_X) + low.cond_embed(context_XD.bfloat16()))
    h_XW = h._precise(low.input_proj, noisy_XC)
    assert not torch.equal(h_XW, h._precise(low.input_proj, noisy_XC * (1 + 2**-10)))
    predicted_XE = low.predict(noisy_XC, modulation_XKW)
    assert predicted_XE.dtype == torch.float32
    assert not torch.equal(predicted_XE, predicted_XE.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        assert head.predict(noisy_XC, modulation_XKW.float()).dtype == torch.float32


@torch.no_grad()
def test_rounding_is_not_multiplied_at_the_noisiest_step() -> None:
    """What bfloat16 adds to tokens in the first of 100 steps from timestep 999, in standard deviations,
    against the same weights in float32: more than a half where that step, too, is in bfloat16.
    """
    model = load("mar-scenes").model
    assert isinstance(model, MAR)
    low = copy.deepcopy(model.network.head).bfloat16()
    context_1BMD = model.features(model.blank(B), model.encode([3, 17]))[:, :, :M].bfloat16().float()
    denoising = Denoising(num_steps=100, noisiest=999)
    (first, second, *_) = reverse_chain(denoising)
    assert isinstance(first, AncestralStep)
    assert first.gain == pytest.approx(316, abs=1)
    assert second.gain < 2 < h.PRECISE_GAIN < first.gain
    noisy_XC = torch.randn(B * M, low.channels)
    spread_XC = torch.zeros_like(noisy_XC)

    def after_first(net: h.HeadNetwork, *, rounded: bool) -> Tensor:
        tokens = h.DiffusionTokens(net, context_1BMD, PLACES_BM, 1.0)
        chain = [replace(first, mean_from_clean=0.0)] if rounded else [first]  # no gain, no precision
        (predict,) = tokens._predictions(chain)
        noise_XC = predict(noisy_XC)[0, :, : low.channels]
        return first.advance(noisy_XC, noise_XC, spread_XC, None)

    exact_XC = after_first(copy.deepcopy(low).float(), rounded=False)
    noise = [
        (after_first(low, rounded=rounded) - exact_XC).square().mean().sqrt() for rounded in (True, False)
    ]
    assert noise[0] > 0.5
    assert noise[1] < 1e-3


@torch.no_grad()
def test_a_precise_step_leaves_no_trace(head) -> None:
    """Neither in the weights nor in what is kept of them, and float32 weights have no such steps."""
    low, denoising = copy.deepcopy(head).bfloat16(), Denoising(num_steps=8, noisiest=999)
    chain, context_1BMD = reverse_chain(denoising), torch.randn(1, B, M, WIDTH)
    before = {name: parameter.data_ptr() for name, parameter in low.named_parameters()}
    tokens = h.DiffusionTokens(low, context_1BMD, PLACES_BM, 1.0)
    noisy_XC = torch.randn(B * M, C)
    precise, *others = [predict(noisy_XC) for predict in tokens._predictions(chain)]
    torch.testing.assert_close(
        precise, copy.deepcopy(low).float()(noisy_XC, torch.tensor([999]), context_1BMD.flatten(1, 2))
    )
    assert {name: parameter.data_ptr() for name, parameter in low.named_parameters()} == before
    assert {kept.dtype for kept in low._cache.kept(low).values()} == {torch.bfloat16}
    assert len(others) == 7
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(h.HeadNetwork, "predict_precisely", None)
        tokens = h.DiffusionTokens(head, context_1BMD, PLACES_BM, 1.0)
        assert len([predict(noisy_XC) for predict in tokens._predictions(chain)]) == 8


def test_sampling_is_differentiable(network: Network) -> None:
    context_1BMD = torch.randn(1, B, M, WIDTH, requires_grad=True)
    tokens = h.DiffusionTokens(network.head, context_1BMD, PLACES_BM, 1.0)
    tokens.sample(SeededNoise([1, 2], M), step_of(3, deterministic=True))[0].square().mean().backward()
    assert context_1BMD.grad is not None
    assert (context_1BMD.grad != 0).all()
    assert all(parameter.grad is not None for parameter in network.head.parameters())


def test_a_step_without_denoising_is_refused(head) -> None:
    tokens = h.DiffusionTokens(head, torch.randn(1, B, M, WIDTH), PLACES_BM, 1.0)
    with pytest.raises(ValueError, match=r"needs Step\.denoising, got None: use the model's own schedule"):
        tokens.sample(SeededNoise([1, 2], M), Step(index=0, num_masked_before=M, num_masked_after=0))
    assert tokens.log_prob(torch.zeros(B, M, C), 1.0) is None


def test_joined_modulations_are_the_blocks_own(head) -> None:
    embedded_XW = torch.randn(5, head.width)
    joined_XKW = head.modulate(embedded_XW)
    own = [block.adaLN_modulation(embedded_XW) for block in (*head.res_blocks, head.final_layer)]
    expected_XKW = torch.cat(own, dim=-1).unflatten(-1, (-1, head.width))
    expected_XKW[:, 1::3] += 1
    torch.testing.assert_close(joined_XKW, expected_XKW)


def test_time_is_embedded_once_for_many_rows(head) -> None:
    timesteps_X = torch.randint(1000, (1500,))
    torch.testing.assert_close(head.embed_time(timesteps_X), head.time_embed(timesteps_X))
    wave = sinusoid(torch.tensor([0, 999]), h.TIME_FREQUENCIES)
    assert torch.equal(wave[0], torch.cat([torch.ones(128), torch.zeros(128)])), "cosines come first"


def changed_in_place(model: MAR) -> None:
    model.network.head.res_blocks[0].adaLN_modulation[1].weight.mul_(1.5)  # type: ignore[index, union-attr]


def rounded(model: MAR) -> None:
    model.to(torch.bfloat16).to(torch.float32)


def loaded(model: MAR) -> None:
    model.load_state_dict({key: 1.1 * value for key, value in model.state_dict().items()})


def replaced(model: MAR) -> None:
    state = {key: 1.1 * value for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def stepped(model: MAR) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.mark.parametrize("change", [changed_in_place, rounded, loaded, replaced, stepped])
@torch.no_grad()
def test_joined_weights_are_dropped_with_the_weights(change, model: MAR) -> None:
    head, embedded_XW = model.network.head, torch.randn(5, 24)
    first = head.modulate(embedded_XW)
    assert len(head._cache) == 2
    assert torch.equal(head.modulate(embedded_XW), first)
    change(model)
    with torch.enable_grad():
        expected = model.network.head.modulate(embedded_XW)  # made anew: nothing is kept under autograd
    assert torch.equal(model.network.head.modulate(embedded_XW), expected)
    assert not torch.equal(expected, first)
