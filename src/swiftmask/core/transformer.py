"""Parts of BERT-like transformers and of time conditioning that several networks are built of.

MaskGIT and its shortcut share the first two, MAR's head and the shortcuts the last. Module names are those of
the released checkpoints.
"""

import math

import torch
from torch import Tensor, nn

_SLOWEST_PERIOD = 10000.0


class FeedForward(nn.Module):
    """Linear, GELU, linear, with dropout after each."""

    def __init__(self, width: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, hidden_width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x_XTD: Tensor) -> Tensor:
        expand, gelu, dropout, contract, last_dropout = self.net
        hidden = expand(x_XTD)
        if hidden.requires_grad:
            return last_dropout(contract(dropout(gelu(hidden))))
        # In place where nothing is differentiated: GELU into fresh memory costs as much as a matmul on a CPU.
        return contract(torch.ops.aten.gelu_(hidden))


class PreNorm(nn.Module):
    """x + fn(norm(x), ...): what else `fn` takes stays as it is."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x_XTD: Tensor, *context: Tensor) -> Tensor:
        return x_XTD + self.fn(self.norm(x_XTD), *context)


class TimeEmbedding(nn.Module):
    """A vector [..., width] for each time, of its sinusoid."""

    def __init__(self, width: int, *, num_frequencies: int, hidden_width: int) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.mlp = nn.Sequential(
            nn.Linear(num_frequencies, hidden_width), nn.SiLU(), nn.Linear(hidden_width, width)
        )

    def forward(self, times_X: Tensor) -> Tensor:
        return self.mlp(sinusoid(times_X, self.num_frequencies).to(next(self.mlp.parameters()).dtype))


def sinusoid(times_X: Tensor, num_frequencies: int) -> Tensor:
    """Cosines, then sines, of a time from 0 to 1000: float32 [..., num_frequencies], whatever its dtype: at
    1000, half precision cannot tell neighbours apart.
    """
    half = num_frequencies // 2
    exponents = torch.arange(half, dtype=torch.float32, device=times_X.device) / half
    angles_XF = times_X.float()[..., None] * torch.exp(-math.log(_SLOWEST_PERIOD) * exponents)
    return torch.cat([angles_XF.cos(), angles_XF.sin()], dim=-1)
