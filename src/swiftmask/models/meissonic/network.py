"""The Meissonic transformer (Bai et al., arXiv 2410.08261), also of Monetico: codes and a prompt to features.

Double-stream blocks hold text and image apart and let them attend to each other (Esser et al., arXiv
2403.03206), single-stream blocks run both as one sequence. Time, the pooled prompt and five micro-conditions
(Podell et al., arXiv 2307.01952) modulate every block. At 1024 pixels a 2x2 convolution halves the grid
before the blocks and its transpose restores it after. Module names are those of the released checkpoints, so
their weights load without a key map.

Three things differ from the reference without changing its numbers: what depends on the prompt alone
(`condition`) and the rotary table are arguments, made once for a whole decode; image tokens are embedded once
for both guidance branches; and the features end after the last norm, so that the head is one linear layer,
run where a token is wanted. One thing changes half-precision runs: time stays float32 until its sinusoids are
taken. The reference multiplies by 1000 in the model's dtype, which overflows float16 with 67 steps or more
and rounds in bfloat16.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.ranges import check_fields
from swiftmask.models.meissonic.blocks import EPS, DoubleBlock, SingleBlock
from swiftmask.models.meissonic.rotary import Rotary

NUM_MICRO = 5
"""Micro-conditions: width, height, top and left of the crop, aesthetic score."""

_SINUSOIDS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Sizes of the transformer. Ids: codes 0..K-1, unused rows, mask last.

    Attributes:
        text_width: of the text encoder's hidden states; its pooled output has the transformer's own width.
        rotary_axes: channels of each head that turn with the three axes.
        downsample: whether the blocks run on a grid of half the side.
    """

    num_heads: int
    head_width: int
    num_double_blocks: int
    num_single_blocks: int
    text_width: int
    codebook_size: int
    vocabulary_size: int
    rotary_axes: tuple[int, ...]
    downsample: bool

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.rotary_axes) != 3 or sum(self.rotary_axes) != self.head_width:
            raise ValueError(
                f"rotary_axes must be three widths that add up to head_width {self.head_width}, "
                f"got {self.rotary_axes}"
            )
        if any(width % 2 for width in self.rotary_axes):
            raise ValueError(f"rotary_axes must be even, as channels turn in pairs, got {self.rotary_axes}")
        if self.vocabulary_size <= self.codebook_size:
            raise ValueError(
                f"the mask needs a row of its own: expected a vocabulary of more than {self.codebook_size} "
                f"codes, got {self.vocabulary_size}"
            )

    @property
    def width(self) -> int:
        return self.num_heads * self.head_width

    @property
    def mask_id(self) -> int:
        return self.vocabulary_size - 1

    @property
    def stride(self) -> int:
        """Canvas tokens per row of the blocks, along one side."""
        return 2 if self.downsample else 1


class Conditioning(NamedTuple):
    """What the backbone knows of the prompts at every step, one row per image and guidance branch.

    Attributes:
        text_XTD: the text stream.
        vector_XD: pooled prompt and micro-conditions, to which each step adds its time.
    """

    text_XTD: Tensor
    vector_XD: Tensor


class _PairMLP(nn.Module):
    """Linear, SiLU, linear."""

    def __init__(self, width_in: int, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width, bias=bias)
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def forward(self, x_XD: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x_XD)))


class _TimeText(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = _PairMLP(_SINUSOIDS, width)
        self.text_embedder = _PairMLP(width, width)


class _TokenEmbedding(nn.Module):
    def __init__(self, vocabulary_size: int, width: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary_size, width)
        self.layer_norm = nn.RMSNorm(width, eps=EPS)
        self.conv = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return _pointwise(self.conv, self.layer_norm(self.embeddings(ids)))


class _Resample(nn.Module):
    """RMS norm, then a convolution that halves or doubles the grid."""

    def __init__(self, width: int, conv: nn.Module) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=EPS)
        self.conv = conv

    def forward(self, x_BHWD: Tensor) -> Tensor:
        return self.conv(self.norm(x_BHWD).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class _Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.downsample = _Resample(width, nn.Conv2d(width, width, 2, stride=2, bias=False))

    def forward(self, x_BHWD: Tensor) -> Tensor:
        return self.downsample(x_BHWD)


class _Up(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.upsample = _Resample(width, nn.ConvTranspose2d(width, width, 2, stride=2, bias=False))

    def forward(self, x_BHWD: Tensor) -> Tensor:
        return self.upsample(x_BHWD)


class _Head(nn.Module):
    def __init__(self, width: int, codebook_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)
        self.layer_norm = nn.RMSNorm(width, eps=EPS)
        self.conv2 = nn.Conv2d(width, codebook_size, 1, bias=False)


class Transformer(nn.Module):
    """Ids and prompts in, features out; `logits` is the linear head on top."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.time_text_embed = _TimeText(width)
        self.context_embedder = nn.Linear(config.text_width, width)
        self.encoder_proj_layer_norm = nn.RMSNorm(width, eps=EPS)
        self.cond_embed = _PairMLP(width + NUM_MICRO * _SINUSOIDS, width, bias=False)
        self.embed = _TokenEmbedding(config.vocabulary_size, width)
        if config.downsample:
            self.down_block, self.up_block = _Down(width), _Up(width)
        self.project_to_hidden_norm = nn.RMSNorm(width, eps=EPS)
        self.project_to_hidden = nn.Linear(width, width, bias=False)
        self.transformer_blocks = nn.ModuleList(
            DoubleBlock(config.width, config.num_heads) for _ in range(config.num_double_blocks)
        )
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(config.width, config.num_heads) for _ in range(config.num_single_blocks)
        )
        self.project_from_hidden_norm = nn.RMSNorm(width, eps=EPS)
        self.project_from_hidden = nn.Linear(width, width, bias=False)
        self.mlm_layer = _Head(width, config.codebook_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.context_embedder.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.context_embedder.weight.device

    def condition(self, states_XTC: Tensor, pooled_XD: Tensor, micro_X5: Tensor) -> Conditioning:
        """The work on prompts that no step changes.

        Args:
            states_XTC: hidden states of the text encoder before its last layer.
            pooled_XD: its projected pooled output.
            micro_X5: width and height in pixels, top and left of the crop, aesthetic score.
        """
        dtype = self.dtype
        text_XTD = self.encoder_proj_layer_norm(self.context_embedder(states_XTC.to(dtype)))
        micro_XE = _sinusoids(micro_X5).flatten(1).to(dtype)
        facts_XD = self.cond_embed(torch.cat([pooled_XD.to(dtype), micro_XE], dim=-1))
        return Conditioning(text_XTD, self.time_text_embed.text_embedder(facts_XD))

    def forward(
        self, ids_BHW: Tensor, conditioning: Conditioning, timesteps_X: Tensor, rotary: Rotary
    ) -> Tensor:
        """Features [X, H * W, D] after the last norm, in raster order.

        Args:
            ids_BHW: one canvas an image; H and W multiples of the config's `stride`.
            conditioning: X rows, a whole number of branches of B images each, branch by branch.
            timesteps_X: decode steps left after this one, one a row or a single one for all.
            rotary: of the text and the blocks' grid (rotary.py).
        """
        text_XTD, vector_XD = conditioning
        image_BTD, grid = self._image_stream(ids_BHW)
        image_XTD = image_BTD.repeat(len(text_XTD) // len(ids_BHW), 1, 1)
        time_XD = self.time_text_embed.timestep_embedder(
            _sinusoids(1000.0 * timesteps_X.float()).to(self.dtype)
        )
        active_XD = F.silu(vector_XD + time_XD)
        for block in self.transformer_blocks:
            text_XTD, image_XTD = block(text_XTD, image_XTD, active_XD, rotary)
        x_XTD = torch.cat([text_XTD, image_XTD], dim=1)
        for block in self.single_transformer_blocks:
            x_XTD = block(x_XTD, active_XD, rotary)
        return self._features(x_XTD[:, text_XTD.shape[1] :], grid)

    def logits(self, features_BMD: Tensor) -> Tensor:
        """Float32 logits [..., K] over the image codes, computed in the dtype of the weights. Linear."""
        return _pointwise(self.mlm_layer.conv2, features_BMD).float()

    def _image_stream(self, ids_BHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Rows of the image stream, and the grid they form."""
        x_BHWD = self.embed(ids_BHW)
        if self.config.downsample:
            x_BHWD = self.down_block(x_BHWD)
        grid = (x_BHWD.shape[1], x_BHWD.shape[2])
        return self.project_to_hidden(self.project_to_hidden_norm(x_BHWD.flatten(1, 2))), grid

    def _features(self, image_XTD: Tensor, grid: tuple[int, int]) -> Tensor:
        x_XTD = self.project_from_hidden(self.project_from_hidden_norm(image_XTD))
        if self.config.downsample:
            x_XTD = self.up_block(x_XTD.unflatten(1, grid)).flatten(1, 2)
        return self.mlm_layer.layer_norm(_pointwise(self.mlm_layer.conv1, x_XTD))


def _pointwise(conv: nn.Conv2d, x_XD: Tensor) -> Tensor:
    """A 1x1 convolution without bias where channels come last."""
    return F.linear(x_XD, conv.weight.flatten(1))


def _sinusoids(values_X: Tensor) -> Tensor:
    """Cosines, then sines, at 128 frequencies falling from 1 to nearly 1 / 10000: float32 [..., 256]."""
    device, half = values_X.device, _SINUSOIDS // 2
    exponents = -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=device) / half
    # The last bit of a float32 exponential differs between machines, and shows where values are thousands.
    wide = torch.float32 if device.type == "mps" else torch.float64
    angles = values_X[..., None].float() * exponents.to(wide).exp().float()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
