"""The blocks of the Meissonic transformer (network.py), under the names of the released checkpoints."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.attention import attend
from swiftmask.models.meissonic.rotary import Rotary

EPS = 1e-6
"""Of every norm."""

_MLP_RATIO = 4
_LARGEST_HALF = 65504.0


class _Modulation(nn.Module):
    """Shifts, scales and gates [X, 1, D] of a block."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, count * width)
        self.count = count

    def forward(self, active_XD: Tensor) -> tuple[Tensor, ...]:
        return self.linear(active_XD)[:, None].chunk(self.count, dim=-1)


class _Expand(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, _MLP_RATIO * width)

    def forward(self, x_XTD: Tensor) -> Tensor:
        return _gelu(self.proj(x_XTD))


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # The identity stands where upstream keeps a dropout of zero: names count its place.
        self.net = nn.Sequential(_Expand(width), nn.Identity(), nn.Linear(_MLP_RATIO * width, width))

    def forward(self, x_XTD: Tensor) -> Tensor:
        return self.net(x_XTD)


class _JointAttention(nn.Module):
    """Text and image project on their own (`add_*` is text) and attend as one sequence, text first."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        head = width // num_heads
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = (nn.RMSNorm(head, eps=EPS) for _ in range(2))
        self.norm_added_q, self.norm_added_k = (nn.RMSNorm(head, eps=EPS) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.to_add_out = nn.Linear(width, width)

    def forward(self, text_XTD: Tensor, image_XTD: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        num_text, heads = text_XTD.shape[1], self.num_heads
        q_XNTH, k_XNTH, v_XNTH = (
            torch.cat([of_text, of_image], dim=2)
            for of_text, of_image in (
                (
                    self.norm_added_q(_heads(self.add_q_proj(text_XTD), heads)),
                    self.norm_q(_heads(self.to_q(image_XTD), heads)),
                ),
                (
                    self.norm_added_k(_heads(self.add_k_proj(text_XTD), heads)),
                    self.norm_k(_heads(self.to_k(image_XTD), heads)),
                ),
                (_heads(self.add_v_proj(text_XTD), heads), _heads(self.to_v(image_XTD), heads)),
            )
        )
        out_XTD = _attend(q_XNTH, k_XNTH, v_XNTH, rotary)
        return self.to_add_out(out_XTD[:, :num_text]), self.to_out[0](out_XTD[:, num_text:])


class _SelfAttention(nn.Module):
    """Attention without an output projection."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        head = width // num_heads
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = (nn.RMSNorm(head, eps=EPS) for _ in range(2))

    def forward(self, x_XTD: Tensor, rotary: Rotary) -> Tensor:
        q_XNTH = self.norm_q(_heads(self.to_q(x_XTD), self.num_heads))
        k_XNTH = self.norm_k(_heads(self.to_k(x_XTD), self.num_heads))
        return _attend(q_XNTH, k_XNTH, _heads(self.to_v(x_XTD), self.num_heads), rotary)


class DoubleBlock(nn.Module):
    """Text and image keep rows of their own and attend to each other (arXiv 2403.03206)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = _Modulation(width, 6)
        self.norm1_context = _Modulation(width, 6)
        self.attn = _JointAttention(width, num_heads)
        self.ff = _FeedForward(width)
        self.ff_context = _FeedForward(width)

    def forward(
        self, text_XTD: Tensor, image_XTD: Tensor, active_XD: Tensor, rotary: Rotary
    ) -> tuple[Tensor, Tensor]:
        shift, scale, gate, *image_mlp = self.norm1(active_XD)
        text_shift, text_scale, text_gate, *text_mlp = self.norm1_context(active_XD)
        text_out_XTD, image_out_XTD = self.attn(
            _modulated(text_XTD, text_shift, text_scale), _modulated(image_XTD, shift, scale), rotary
        )
        text_XTD = _fed_forward(text_XTD + text_gate * text_out_XTD, self.ff_context, text_mlp)
        return _within_half(text_XTD), _fed_forward(image_XTD + gate * image_out_XTD, self.ff, image_mlp)


class SingleBlock(nn.Module):
    """Text and image as one sequence; attention and feed-forward side by side."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm = _Modulation(width, 3)
        self.proj_mlp = nn.Linear(width, _MLP_RATIO * width)
        self.proj_out = nn.Linear((1 + _MLP_RATIO) * width, width)
        self.attn = _SelfAttention(width, num_heads)

    def forward(self, x_XTD: Tensor, active_XD: Tensor, rotary: Rotary) -> Tensor:
        shift, scale, gate = self.norm(active_XD)
        normed_XTD = _modulated(x_XTD, shift, scale)
        attended, expanded = self.attn(normed_XTD, rotary), _gelu(self.proj_mlp(normed_XTD))
        return _within_half(x_XTD + gate * _linear_of_both(self.proj_out, attended, expanded))


def _modulated(x_XTD: Tensor, shift_X1D: Tensor, scale_X1D: Tensor) -> Tensor:
    return F.layer_norm(x_XTD, x_XTD.shape[-1:], eps=EPS) * (1 + scale_X1D) + shift_X1D


def _fed_forward(x_XTD: Tensor, mlp: _FeedForward, modulation: list[Tensor]) -> Tensor:
    shift_X1D, scale_X1D, gate_X1D = modulation
    return x_XTD + gate_X1D * mlp(_modulated(x_XTD, shift_X1D, scale_X1D))


def _gelu(x_XTE: Tensor) -> Tensor:
    """In place where nothing is differentiated: GELU into fresh memory costs page faults on a CPU."""
    if x_XTE.requires_grad:
        return F.gelu(x_XTE, approximate="tanh")
    return torch.ops.aten.gelu_(x_XTE, approximate="tanh")


def _linear_of_both(layer: nn.Module, left_XTD: Tensor, right_XTE: Tensor) -> Tensor:
    """A linear layer of two inputs side by side, as two matmuls that add up: joining them is a copy of all.

    A layer with adapters around it (peft) gets them joined.
    """
    if type(layer) is not nn.Linear:
        return layer(torch.cat([left_XTD, right_XTE], dim=-1))
    first, rest = layer.weight.tensor_split([left_XTD.shape[-1]], dim=1)
    partial_XTD = F.linear(left_XTD, first, layer.bias)
    summed = torch.addmm(partial_XTD.flatten(0, 1), right_XTE.flatten(0, 1), rest.t())
    return summed.unflatten(0, partial_XTD.shape[:2])


def _heads(x_XTD: Tensor, num_heads: int) -> Tensor:
    return x_XTD.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _attend(q_XNTH: Tensor, k_XNTH: Tensor, v_XNTH: Tensor, rotary: Rotary) -> Tensor:
    """Attention of every row to every row: padding of the prompt included, as trained."""
    out_XNTH = attend(rotary.turn(q_XNTH), rotary.turn(k_XNTH), v_XNTH)
    return out_XNTH.transpose(1, 2).flatten(2)


def _within_half(x_XTD: Tensor) -> Tensor:
    """In float16 a stream that grows too large is held at the largest number instead of infinity."""
    return x_XTD.clamp(-_LARGEST_HALF, _LARGEST_HALF) if x_XTD.dtype == torch.float16 else x_XTD
