"""MAR behind the contract: its order, its first step, its schedule, and what it refuses."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.rng import ReplayNoise, SeededNoise
from swiftmask.core.types import Denoising, Record
from swiftmask.models.mar import MAR
from swiftmask.models.mar.codec import KLCodec
from swiftmask.models.mar.diffusion import training_process
from swiftmask.models.mar.generator import to_latents, to_patches
from swiftmask.models.mar.network import Network
from swiftmask.pipeline import Pipeline

FAST = SamplingOptions(guidance=3.0, denoising_steps=2)
L, C = 16, 4


@pytest.fixture
def forwards(model: MAR) -> list[int]:
    """Rows of every forward of the backbone, in order."""
    rows: list[int] = []
    model.network.encoder_norm.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    return rows


@torch.no_grad()
def first_features(model: MAR, labels: list[int]) -> Tensor:
    condition = model.with_null(model.encode(labels))
    return model.features(model.blank(len(labels)), condition)


def test_decides_a_permutation_from_its_end(model: MAR) -> None:
    order_BL = torch.stack([torch.randperm(L) for _ in range(2)])
    canvas, noise = model.blank(2), ReplayNoise([order_BL, torch.randn(2, L, C)])
    rule = model.unmask_rule(canvas, noise)
    step = model.schedule(4, num_masked=L, options=FAST)[0]
    condition = model.with_null(model.encode([0, 1]))
    with torch.no_grad():
        features_GBLD = model.features(canvas, condition)
        decision = rule(
            lambda positions: model.tokens(features_GBLD, positions, step.guidance),
            canvas,
            step,
            SeededNoise([0, 1], L),
        )
    assert torch.equal(decision.positions_BN, order_BL.flip(1)[:, : step.num_decided])


def test_every_step_decides_what_the_schedule_says(model: MAR) -> None:
    """The head is asked for as many tokens as are decided, and known tokens are never touched again."""
    records: list[Record] = []
    result = Pipeline(model, sampling=FAST).generate(
        [0, 4], steps=5, output_type="pt", on_step=records.append
    )
    for record in records:
        kept = ~record.before.masked_BL
        assert record.decision.positions_BN.shape[1] == record.step.num_decided
        assert (record.after.masked_BL.sum(dim=1) == record.step.num_masked_after).all()
        assert torch.equal(record.after.tokens_BL[kept], record.before.tokens_BL[kept])
    assert (result.trajectory.decided_at_BL >= 0).all()
    assert result.trajectory.log_prob_BL is None


def test_a_partly_filled_canvas_keeps_its_tokens(model: MAR) -> None:
    images_B3HW = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        tokens_BLC = model.to_tokens(images_B3HW)
    positions_BN = torch.tensor([[0, 5, 6], [1, 2, 15]])
    given_BNC = tokens_BLC.gather(1, positions_BN[..., None].expand(-1, -1, C))
    canvas = model.blank(2).write(positions_BN, given_BNC)
    result = Pipeline(model, sampling=FAST).generate([0, 1], steps=3, canvas=canvas, output_type="pt")
    final_BLC = result.trajectory.tokens_BL
    assert torch.equal(final_BLC.gather(1, positions_BN[..., None].expand(-1, -1, C)), given_BNC)


def test_the_first_step_runs_once_for_each_class(model: MAR, forwards: list[int]) -> None:
    first = first_features(model, [3, 1, 3, 3])
    assert forwards == [3], "two classes and no class"
    again = first_features(model, [1, 3])
    assert forwards == [3], "nothing new"
    assert torch.equal(first[:, [1, 0]], again)
    assert torch.equal(first[1, 0], first[1, 1])
    first_features(model, [0, 3])
    assert forwards == [3, 1]


def test_what_is_kept_equals_what_is_computed(model: MAR) -> None:
    first_features(model, [2])
    kept = first_features(model, [2, 0])
    anew = first_features(copy.deepcopy(model), [2, 0])
    torch.testing.assert_close(kept, anew, rtol=1e-5, atol=1e-6)
    model.train()
    model.network.eval()  # the ordinary way, on the same weights
    torch.testing.assert_close(first_features(model, [2, 0]), anew, rtol=1e-5, atol=1e-6)


def multiply(model: MAR) -> None:
    model.network.encoder_blocks[1].attn.proj.weight.mul_(1.5)  # type: ignore[union-attr, operator]


def load(model: MAR) -> None:
    model.load_state_dict({key: 1.1 * value for key, value in model.state_dict().items()})


def round_off(model: MAR) -> None:
    model.to(torch.bfloat16).to(torch.float32)


def round_off_below(model: MAR) -> None:
    model.network.to(torch.bfloat16).to(torch.float32)


@pytest.mark.parametrize("change", [multiply, load, round_off, round_off_below])
@torch.no_grad()
def test_what_is_kept_goes_with_the_weights(model: MAR, change: Callable[[MAR], None]) -> None:
    before = first_features(model, [2, 0])
    change(model)
    after = first_features(model, [2, 0])
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, first_features(copy.deepcopy(model), [2, 0]))


def test_the_first_step_is_differentiable(model: MAR) -> None:
    model.features(model.blank(2), model.encode([1, 1])).sum().backward()
    assert model.network.class_emb.weight.grad is not None
    assert model.network.class_emb.weight.grad[1].any()
    assert len(model._first_features) == 0


@torch.no_grad()
def test_only_so_many_classes_are_kept(model: MAR, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model._first_features, "_limit", 3)
    whole = first_features(model, [0, 1, 2, 3, 4])
    assert len(model._first_features) == 3
    torch.testing.assert_close(first_features(model, [0, 4]), whole[:, [0, 4]], rtol=1e-5, atol=1e-6)


def test_schedule_defaults_and_options(model: MAR) -> None:
    steps = model.schedule(4, num_masked=L, options=SamplingOptions())
    assert [step.denoising for step in steps] == [Denoising(num_steps=100)] * 4
    assert steps[-1].guidance == pytest.approx(1 + 1.9 * 15 / 16)
    options = SamplingOptions(denoising_steps=(50, 5), sampler="ddim", temperature=0.9)
    steps = model.schedule(4, num_masked=L, options=options)
    assert [step.denoising for step in steps] == [
        Denoising(num_steps=count, deterministic=True) for count in (50, 35, 20, 5)
    ]
    assert steps[0].temperature == 0.9
    with pytest.raises(ValueError, match="at least 2 denoising steps, got 1: use sampler=ddim"):
        model.schedule(4, num_masked=L, options=SamplingOptions(denoising_steps=(3, 1)))


def test_guidance_may_be_constant(network: Network, codec: KLCodec) -> None:
    model = MAR(network, codec, guidance_schedule="constant")
    steps = model.schedule(4, num_masked=L, options=SamplingOptions(guidance=3.0))
    assert {step.guidance for step in steps} == {3.0}
    with pytest.raises(ValueError, match="guidance_schedule must be linear or constant, got 'rising'"):
        MAR(network, codec, guidance_schedule="rising")  # type: ignore[arg-type]


def test_settings_survive_a_round_trip(network: Network, codec: KLCodec, tmp_path) -> None:
    model = MAR(
        network,
        codec,
        sampling=SamplingOptions(guidance=2.0, denoising_steps=(20, 4), sampler="ddim"),
        guidance_schedule="constant",
        class_names=("circle", "square", "star", "moon", "sun"),
    )
    model.save_pretrained(tmp_path, provenance={})
    again = MAR.from_pretrained(tmp_path)
    assert again.sampling == model.sampling
    assert again.guidance_schedule == "constant"
    assert again.encode(["moon", "0", "4"]).labels == (3, 0, 4)  # type: ignore[list-item]
    steps = again.schedule(3, num_masked=L, options=SamplingOptions())
    assert [step.denoising for step in steps] == [
        Denoising(num_steps=count, deterministic=True) for count in (20, 12, 4)
    ]


@pytest.mark.parametrize("label", [5, -1, "cat", 2.5])
def test_labels_out_of_range(model: MAR, label: object) -> None:
    with pytest.raises(ValueError, match=rf"unknown class {label!r}: give a number from 0 to 4"):
        model.encode([0, label])  # type: ignore[list-item]


def test_a_codec_that_does_not_fit(network: Network, codec: KLCodec) -> None:
    for changes, got in (({"z_channels": 8}, "4x4 of 8"), ({"resolution": 16}, "8x8 of 4")):
        with pytest.raises(
            ValueError, match=f"reads 4x4 tokens of 4 channels, the codec gives {got}: use the"
        ):
            MAR(network, KLCodec(replace(codec.config, **changes)))


def test_denoise_is_the_head_unguided(model: MAR) -> None:
    noisy_XC, context_XD = torch.randn(5, C), torch.randn(5, 48)
    timesteps_X = torch.tensor([0, 3, 500, 755, 999])
    expected_XC = model.network.head(noisy_XC, timesteps_X, context_XD)[:, :C]
    torch.testing.assert_close(model.denoise(noisy_XC, timesteps_X, context_XD), expected_XC)
    assert torch.equal(model.signal_T, training_process().signal_S)
    assert model.signal_T.dtype == torch.float64


def test_pixels_of_tokens(model: MAR) -> None:
    with torch.no_grad():
        tokens_BLC = model.to_tokens(torch.rand(2, 3, 8, 8))
        images_B3HW = model.to_pixels(tokens_BLC)
    assert tokens_BLC.shape == (2, L, C)
    assert images_B3HW.shape == (2, 3, 8, 8)
    assert 0 <= images_B3HW.min() <= images_B3HW.max() <= 1


def test_patches() -> None:
    """Raster order of patches; within one, channel first, then row and column."""
    latent_BCHW = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4)
    tokens_BLC = to_patches(latent_BCHW, 2)
    assert tokens_BLC.shape == (2, 4, 12)
    assert tokens_BLC[0, 1].tolist() == latent_BCHW[0, :, :2, 2:].flatten().tolist()
    assert torch.equal(to_latents(tokens_BLC, 2), latent_BCHW)
    assert torch.equal(to_patches(latent_BCHW, 1), latent_BCHW.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("of_the_head", [True, False])
def test_parameters_that_drawing_a_token_reads(golden_mar: MAR, of_the_head: bool) -> None:
    """Those that get a gradient from the predicted noise; the head alone, or with the backbone."""
    model = copy.deepcopy(golden_mar).requires_grad_()
    spec = model.spec
    positions_1N = torch.arange(spec.num_tokens // 2)[None]
    canvas = model.blank(1).write(positions_1N, torch.randn(1, positions_1N.shape[1], spec.channels))
    context_XD = model.features(canvas, model.encode([0]))[0, 0]
    noisy_XC, timesteps_X = torch.randn(len(context_XD), spec.channels), torch.zeros(len(context_XD)).long()
    context_XD = context_XD.detach() if of_the_head else context_XD
    model.denoise(noisy_XC, timesteps_X, context_XD).sum().backward()
    read = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert read == (model.head_parameters() if of_the_head else model.network_parameters())
