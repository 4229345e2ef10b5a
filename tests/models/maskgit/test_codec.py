"""The codec equals the reference's numbers, and can be trained."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from verify.kinds.maskgit_vqgan import config_of

from swiftmask.core.codebook import nearest
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig

GOLDEN = Path(__file__).parents[2] / "golden"
SMALL = VQGANConfig(
    ch=32,
    ch_mult=(1, 1, 2),
    num_res_blocks=1,
    attn_resolutions=(12,),
    resolution=48,
    z_channels=16,
    n_embed=32,
    embed_dim=8,
    image_size=64,
)


@pytest.fixture(scope="module")
def golden() -> tuple[VQGAN, dict[str, Tensor]]:
    config = json.loads((GOLDEN / "maskgit_vqgan.json").read_text())["config"]
    tensors = load_file(GOLDEN / "maskgit_vqgan.safetensors")
    codec = VQGAN(config_of(config)).eval()
    codec.load_state_dict({k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")})
    return codec, tensors


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_golden(golden: tuple[VQGAN, dict[str, Tensor]], memory_format: torch.memory_format) -> None:
    codec, tensors = golden
    codec = codec.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    decoded, latent = tensors["out.decoded"], tensors["out.pre_quant"]
    pixels_B3HW = codec.decode_code(tensors["in.codes"])
    z_BCHW = codec.encode_latent(tensors["in.image"])
    assert (pixels_B3HW - decoded).abs().max() <= 1e-5 * decoded.abs().max()
    assert (z_BCHW - latent).abs().max() <= 1e-5 * latent.abs().max()
    assert torch.equal(codec.encode_code(tensors["in.image"]), tensors["out.indices"])


@torch.no_grad()
def test_public_pair_agrees_with_the_raw_one(golden: tuple[VQGAN, dict[str, Tensor]]) -> None:
    codec, tensors = golden
    codes_BHW = codec.encode((tensors["in.image"] + 1) / 2)
    raw_B3HW = codec.decode_code(tensors["in.codes"])
    assert torch.equal(codes_BHW, tensors["out.indices"])
    assert codes_BHW.dtype == torch.int64
    expected_B3HW = ((raw_B3HW + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(codec.decode(tensors["in.codes"]), expected_B3HW)


@torch.no_grad()
def test_grid_follows_the_input() -> None:
    codec = VQGAN(replace(SMALL, image_size=None)).eval()
    assert codec.encode(torch.rand(1, 3, 96, 96)).shape == (1, 24, 24)
    assert codec.encode_code(torch.rand(1, 3, 48, 96)).shape == (1, 12, 24)
    assert codec.decode(torch.zeros(1, 24, 24, dtype=torch.int64)).shape == (1, 3, 96, 96)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shown_size_differs_from_the_tokenized_one(dtype: torch.dtype) -> None:
    codec = VQGAN(SMALL).eval().to(dtype)
    codes_BHW = codec.encode(torch.rand(2, 3, 64, 64))
    images_B3HW = codec.decode(codes_BHW)
    assert codes_BHW.shape == (2, SMALL.grid, SMALL.grid)
    assert images_B3HW.shape == (2, 3, 64, 64)
    assert images_B3HW.dtype == torch.float32
    assert images_B3HW.min() >= 0 and images_B3HW.max() <= 1


def test_nearest_code_is_the_nearest() -> None:
    codec = VQGAN(SMALL)
    z_BCHW = torch.randn(2, 8, 3, 3) * 0.05
    distance = torch.cdist(z_BCHW.permute(0, 2, 3, 1).reshape(-1, 8), codec.quantize.embedding.weight)
    found_BHW = nearest(z_BCHW.permute(0, 2, 3, 1), codec.codebook_VC)
    assert found_BHW.shape == (2, 3, 3)
    assert torch.equal(found_BHW.flatten(), distance.argmin(1))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of num_groups = 32"):
        replace(SMALL, ch=40)
    with pytest.raises(ValueError, match="multiple of 4"):
        replace(SMALL, resolution=50)
