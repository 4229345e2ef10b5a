"""The KL codec equals the reference's numbers, and a small one can be trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from swiftmask.models.mar.codec import KLCodec, KLConfig, Posterior
from swiftmask.models.mar.weights import infer_kl_config

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def golden() -> tuple[KLCodec, dict[str, Tensor]]:
    tensors = load_file(GOLDEN / "mar_vae.safetensors")
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    codec = KLCodec(infer_kl_config(state, scale=0.3)).eval()
    codec.load_state_dict(state)
    return codec.requires_grad_(False), tensors


def test_golden(golden: tuple[KLCodec, dict[str, Tensor]]) -> None:
    codec, tensors = golden
    pairs = {
        "moments": codec.moments(tensors["in.image"]),
        "image": codec.decode_latent(tensors["in.latent"]),
    }
    for name, ours in pairs.items():
        theirs = tensors[f"out.{name}"]
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), name


def test_public_pair_agrees_with_the_raw_one(golden: tuple[KLCodec, dict[str, Tensor]]) -> None:
    codec, tensors = golden
    mean_BCHW = tensors["out.moments"].chunk(2, dim=1)[0]
    latent_BCHW = codec.encode((tensors["in.image"] + 1) / 2)
    torch.testing.assert_close(latent_BCHW, 0.3 * mean_BCHW, rtol=1e-4, atol=1e-5)
    expected_B3HW = ((codec.decode_latent(mean_BCHW) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(codec.decode(0.3 * mean_BCHW), expected_B3HW, rtol=1e-4, atol=1e-4)


def test_posterior() -> None:
    mean_BCHW, log_variance_BCHW = torch.randn(2, 4, 3, 3), torch.full((2, 4, 3, 3), 2.0)
    posterior = Posterior.of(torch.cat([mean_BCHW, log_variance_BCHW], dim=1))
    drawn = posterior.sample(torch.ones_like(mean_BCHW))
    torch.testing.assert_close(drawn, mean_BCHW + torch.tensor(1.0).exp())
    exact = torch.distributions.Normal(mean_BCHW, torch.tensor(1.0).exp())
    expected = torch.distributions.kl_divergence(exact, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(posterior.divergence(), expected)
    wild = Posterior.of(torch.full((1, 2, 1, 1), 1e4))
    assert wild.log_variance_BCHW.item() == 20.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_shown_size_differs_from_the_encoded_one(codec: KLCodec, dtype: torch.dtype) -> None:
    shown = KLCodec(replace(codec.config, image_size=12)).eval().to(dtype)
    latent_BCHW = shown.encode(torch.rand(2, 3, 12, 12))
    images_B3HW = shown.decode(latent_BCHW)
    assert latent_BCHW.shape == (2, 4, 4, 4)
    assert images_B3HW.shape == (2, 3, 12, 12)
    assert images_B3HW.dtype == latent_BCHW.dtype == torch.float32
    assert 0 <= images_B3HW.min() <= images_B3HW.max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch": 20}, "multiple of num_groups = 8, got 20"),
        ({"resolution": 9}, "multiple of 2, got 9"),
        ({"scale": 0.0}, "scale must be a number between 1e-06 and 1_000_000, got 0"),
    ],
)
def test_impossible_sizes(codec: KLCodec, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(codec.config, **changes)


def test_attention_is_placed_by_the_nominal_resolution() -> None:
    sizes = KLConfig(
        ch=8,
        ch_mult=(1, 1, 1),
        num_res_blocks=2,
        attn_resolutions=(16,),
        resolution=64,
        z_channels=2,
        num_groups=4,
    )
    places = {key.rsplit(".", 2)[0] for key in KLCodec(sizes).state_dict() if key.endswith(".q.weight")}
    assert places == {f"encoder.down.2.attn.{i}" for i in (0, 1)} | {
        "encoder.mid.attn_1",
        "decoder.mid.attn_1",
    }
