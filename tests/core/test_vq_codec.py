"""The VQGAN codec: what diffusers itself decodes and encodes, in any dtype, and strict loading."""

import copy

import pytest
import torch
from torch import Tensor

from swiftmask.core.vq_codec import VQCodec, VQConfig, build_vq_codec, load_vq_codec

CONFIG = VQConfig(
    block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, num_vq_embeddings=32, norm_num_groups=4
)


@pytest.fixture
def codec() -> VQCodec:
    return build_vq_codec(CONFIG).requires_grad_(False)


def state_of(codec: VQCodec) -> dict[str, Tensor]:
    return codec.vq.state_dict()


def test_codes_and_images_are_those_of_the_library(codec: VQCodec) -> None:
    codes_BHW, images_B3HW = torch.randint(32, (2, 4, 6)), torch.rand(2, 3, 8, 12)
    theirs_B3HW = codec.vq.decode(codes_BHW, force_not_quantize=True, shape=(2, 4, 6, 4)).sample
    torch.testing.assert_close(codec.decode(codes_BHW), theirs_B3HW.clamp(0, 1))
    latents_BCHW = codec.vq.encode(images_B3HW).latents
    codec.vq.quantize.embedding.weight.copy_(latents_BCHW.permute(0, 2, 3, 1).flatten(0, 2)[:32])
    found_X = codec.encode(images_B3HW).flatten()
    assert torch.equal(found_X[:32], torch.arange(32))
    assert torch.equal(found_X, codec.vq.quantize(latents_BCHW)[2][2])


def test_float16_weights_compute_in_float32(codec: VQCodec) -> None:
    """Activations beyond 65504 would come out as black pictures."""
    half = copy.deepcopy(codec).half()
    half.vq.post_quant_conv.weight *= 1e4
    half.vq.quantize.embedding.weight *= 1e4
    images_B3HW = half.decode(torch.arange(32).view(2, 4, 4))
    assert images_B3HW.dtype == torch.float32
    assert images_B3HW.isfinite().all()
    assert half.encode(torch.rand(1, 3, 8, 8)).shape == (1, 4, 4)


def test_bfloat16_weights_take_and_give_float32_images(codec: VQCodec) -> None:
    codec.bfloat16()
    images_B3HW = codec.decode(torch.zeros(1, 2, 3, dtype=torch.int64))
    assert (images_B3HW.dtype, images_B3HW.shape) == (torch.float32, (1, 3, 4, 6))
    assert codec.encode(images_B3HW).shape == (1, 2, 3)


def test_each_width_but_the_first_halves_the_image() -> None:
    assert CONFIG.downscale == 2


def test_weights_are_loaded_strictly_and_as_float32(codec: VQCodec) -> None:
    state = {key: value.half() for key, value in state_of(codec).items()}
    found = load_vq_codec(CONFIG, state, source="x.safetensors")
    assert not any(module.training for module in found.modules())
    assert {value.dtype for value in found.parameters()} == {torch.float32}
    assert all(torch.equal(value, state[key].float()) for key, value in state_of(found).items())
    del state["quant_conv.bias"]
    with pytest.raises(ValueError, match=r"^x\.safetensors does not fit VQModel: 1 missing: quant_conv"):
        load_vq_codec(CONFIG, state, source="x.safetensors")


def test_sizes_from_the_settings_of_the_library(codec: VQCodec) -> None:
    assert VQConfig.from_settings(dict(codec.vq.config), source="config.json") == CONFIG
    sizes = {"block_out_channels": [8, 8], "layers_per_block": 1, "latent_channels": 4}
    with pytest.raises(ValueError, match=r"^config\.json is no config of a VQModel \(.*num_vq_embeddings"):
        VQConfig.from_settings(sizes, source="config.json")
    with pytest.raises(ValueError, match=r"^config\.json is no config of a VQModel \(.*block_out_channels"):
        VQConfig.from_settings({}, source="config.json")
