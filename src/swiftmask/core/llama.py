"""The block of Llama-like transformers: RMS norm, rotary positions, gated feed-forward, no biases.

LLaDA, the backbone of Lumina-DiMOO (arXiv 2510.06308), and the shortcut network made for it are built of it;
a model and a method may not import each other, so it stands here. Attention goes both ways. Numerics are the
released models': a norm rounds to the input's precision before it scales, rotations are float32.

Query, key and value are one matrix product here, gate and up another; on disk they are apart.
Attention is fused, but for training on a CPU (attention.py).
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.attention import attend_padded

_APART = {"qkv_weight": ("q_proj", "k_proj", "v_proj"), "gate_up_weight": ("ff_proj", "up_proj")}
"""Parameters of a block, and the projections they are on disk, top to bottom."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotations of queries and keys by their places (RoPE, Su et al., arXiv 2104.09864).

    Attributes:
        cos_XTH, sin_XTH: float32, over the width H of one head; H/2 frequencies, twice.
    """

    cos_XTH: Tensor
    sin_XTH: Tensor

    @classmethod
    def at(cls, places_XT: Tensor, head_width: int, theta: float) -> Self:
        """Of integer places [X, T]."""
        exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device=places_XT.device) / head_width
        angle_XTh = places_XT[..., None].float() * (1.0 / theta**exponents)
        angle_XTH = torch.cat([angle_XTh, angle_XTh], dim=-1)
        return cls(angle_XTH.cos(), angle_XTH.sin())

    def turn(self, x_XNTH: Tensor) -> Tensor:
        """Heads [X, N, T, H] turned by their places, in their own dtype. Halves are pairs, not neighbours."""
        first, second = x_XNTH.float().chunk(2, dim=-1)
        half = first.shape[-1]
        cos, sin = self.cos_XTH[:, None, :, :half], self.sin_XTH[:, None, :, :half]
        if x_XNTH.requires_grad or torch.compiler.is_compiling():
            halves = (
                torch.addcmul(first * cos, second, sin, value=-1),
                torch.addcmul(second * cos, first, sin),
            )
            return torch.cat(halves, dim=-1).to(x_XNTH.dtype)
        # Both halves go straight to their place: fresh memory costs page faults on a CPU.
        turned_XNTH = torch.empty_like(x_XNTH)
        left, right = turned_XNTH.chunk(2, dim=-1)
        torch.addcmul(first * cos, second, sin, value=-1, out=left)
        torch.addcmul(second * cos, first, sin, out=right)
        return turned_XNTH


@dataclass(frozen=True, slots=True)
class FreshTokens:
    """What a shortcut with rotary positions reads at a step, for both branches (X = G * B rows).

    Attributes:
        embedded_XND: embeddings of the prompt (conditional rows only) and of freshly decided codes.
        places_XN: their places in their own sequences.
        padding: how many of them, at the start of each row, do not count.
        row_places_XT, row_padding: the same of the features' rows.
    """

    embedded_XND: Tensor
    places_XN: Tensor
    padding: tuple[int, ...]
    row_places_XT: Tensor
    row_padding: tuple[int, ...]

    def __getitem__(self, rows_X: Tensor) -> Self:
        """Those of some rows of the batch; indices on the CPU are read without waiting for the device."""
        rows = rows_X.tolist()
        return type(self)(
            self.embedded_XND[rows_X],
            self.places_XN[rows_X],
            tuple(self.padding[row] for row in rows),
            self.row_places_XT[rows_X],
            tuple(self.row_padding[row] for row in rows),
        )

    def float(self) -> Self:
        """The same with float32 embeddings."""
        return replace(self, embedded_XND=self.embedded_XND.float())


class RMSNorm(nn.Module):
    """x / rms(x) in float32, rounded to the dtype of x, then scaled (in that order: bits depend on it)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_XTD: Tensor) -> Tensor:
        precise = x_XTD.float()
        normed = precise * torch.rsqrt(precise.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x_XTD.dtype) * self.weight


class LlamaBlock(nn.Module):
    """Attention and a gated feed-forward layer, each on the normalised input and added to it.

    `forward` is self-attention. A caller with other keys (of a cache, or of another sequence) puts its block
    together from `project`, `project_queries`, `project_keys` and `finish`.
    """

    def __init__(self, width: int, num_heads: int, mlp_width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_norm = RMSNorm(width, eps)
        self.ff_norm = RMSNorm(width, eps)
        self.qkv_weight = nn.Parameter(torch.empty(3 * width, width))
        self.gate_up_weight = nn.Parameter(torch.empty(2 * mlp_width, width))
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_out = nn.Linear(mlp_width, width, bias=False)
        for weight in (self.qkv_weight, self.gate_up_weight, self.attn_out.weight, self.ff_out.weight):
            init_by_fan_in(weight)

    def forward(self, x_XTD: Tensor, rotary: Rotary, padding_X: Tensor | None = None) -> Tensor:
        """Self-attention. `padding_X`, on the CPU: how many keys at the start of a row do not count."""
        return self.finish(x_XTD, *self.project(x_XTD, rotary), padding_X)

    def project(self, x_XTD: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Turned queries and keys, and values: [X, heads, T, H] each."""
        query, key, value = self._heads(self.attn_norm(x_XTD), self.qkv_weight, 3)
        return rotary.turn(query), rotary.turn(key), value

    def project_queries(self, x_XTD: Tensor, rotary: Rotary) -> Tensor:
        width = x_XTD.shape[-1]
        (query,) = self._heads(self.attn_norm(x_XTD), self.qkv_weight[:width], 1)
        return rotary.turn(query)

    def project_keys(self, context_XND: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Turned keys and values of another sequence, through the same norm as the queries."""
        width = context_XND.shape[-1]
        key, value = self._heads(self.attn_norm(context_XND), self.qkv_weight[width:], 2)
        return rotary.turn(key), value

    def finish(
        self, x_XTD: Tensor, query: Tensor, key: Tensor, value: Tensor, padding_X: Tensor | None = None
    ) -> Tensor:
        """Attention of projected heads, then the feed-forward layer."""
        out_XHTh = attend_padded(query, key, value, padding_X)
        x_XTD = x_XTD + self.attn_out(out_XHTh.transpose(1, 2).flatten(2))
        gate_XTF, up_XTF = F.linear(self.ff_norm(x_XTD), self.gate_up_weight).chunk(2, dim=-1)
        if gate_XTF.requires_grad:
            return x_XTD + self.ff_out(F.silu(gate_XTF) * up_XTF)
        # In place where nothing is differentiated: fresh memory costs page faults on a CPU.
        return x_XTD + self.ff_out(F.silu(gate_XTF, inplace=True).mul_(up_XTF))

    def _heads(self, normed_XTD: Tensor, weight_ED: Tensor, num_parts: int) -> tuple[Tensor, ...]:
        projected_XTE = F.linear(normed_XTD, weight_ED)
        return projected_XTE.unflatten(-1, (num_parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """The released layout: views of the joined matrices under the names of their parts."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for joined, parts in _APART.items():
            pieces = destination.pop(prefix + joined).chunk(len(parts))
            for part, piece in zip(parts, pieces, strict=True):
                destination[f"{prefix}{part}.weight"] = piece

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Joins what the released layout keeps apart. With a part missing nothing is joined, which torch
        reports.
        """
        for joined, parts in _APART.items():
            keys = [f"{prefix}{part}.weight" for part in parts]
            if all(key in state_dict for key in keys):
                state_dict[prefix + joined] = torch.cat([state_dict.pop(key) for key in keys])
        super()._load_from_state_dict(state_dict, prefix, *rest)


def init_by_fan_in(weight_ED: Tensor) -> Tensor:
    """Normal with deviation 1/sqrt(fan-in), cut off at three of them, in place."""
    deviation = weight_ED.shape[-1] ** -0.5
    return nn.init.trunc_normal_(weight_ED, std=deviation, a=-3 * deviation, b=3 * deviation)
