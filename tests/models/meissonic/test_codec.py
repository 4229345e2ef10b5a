"""The codec: what diffusers itself decodes and encodes, in any dtype."""

import copy

import torch

from swiftmask.models.meissonic import Meissonic


@torch.no_grad()
def test_codes_and_pictures_are_those_of_the_library(model: Meissonic) -> None:
    codec = model.codec
    codes_BHW, images_B3HW = torch.randint(32, (2, 4, 6)), torch.rand(2, 3, 8, 12)
    theirs_B3HW = codec.vq.decode(codes_BHW, force_not_quantize=True, shape=(2, 4, 6, 4)).sample
    torch.testing.assert_close(codec.decode(codes_BHW), theirs_B3HW.clamp(0, 1))
    indices_X = codec.vq.quantize(codec.vq.encode(images_B3HW).latents)[2][2]
    assert torch.equal(codec.encode(images_B3HW).flatten(), indices_X)


@torch.no_grad()
def test_float16_weights_compute_in_float32(model: Meissonic) -> None:
    """Activations beyond 65504 would come out as black pictures."""
    half = copy.deepcopy(model.codec).half()
    half.vq.post_quant_conv.weight *= 1e4
    half.vq.quantize.embedding.weight *= 1e4
    images_B3HW = half.decode(torch.arange(32).view(2, 4, 4))
    assert images_B3HW.dtype == torch.float32
    assert images_B3HW.isfinite().all()
    assert half.encode(torch.rand(1, 3, 8, 8)).shape == (1, 4, 4)
