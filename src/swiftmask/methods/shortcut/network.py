"""The shortcut network (MIGM-Shortcut, arXiv 2602.23996), in the shape of the released one for MaskGIT.

`next features = old features + f(old features, tokens just decided, share of the canvas still masked)`.
Module names are those of the released checkpoints, so their weights load without a key map. Two quirks are
kept: attention normalises its query but neither keys nor values, and the norms of the last layer have eps
1e-12 while those in the blocks have 1e-5.
The Lumina-DiMOO variant (RMS norms, rotary positions) is another architecture: rotary.py.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.attention import attend
from swiftmask.core.protocol import Condition, MaskedGenerator
from swiftmask.core.ranges import check_fields
from swiftmask.core.transformer import FeedForward, PreNorm, TimeEmbedding
from swiftmask.core.types import Decision

_EDGE_EPS = 1e-12
TIME_SCALE = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortcutConfig:
    """Sizes of the shortcut.

    Attributes:
        width: of the base model's features.
        bottleneck_width: inside the shortcut; equal to `width` means no projections.
        mlp_width: hidden width of the feed-forward layers; None is four times the bottleneck.
        time_frequencies: length of the sinusoid of the masked ratio; None leaves time conditioning out.
    """

    width: int
    bottleneck_width: int
    num_blocks: int = 1
    num_heads: int = 16
    mlp_width: int | None = None
    time_frequencies: int | None = 256
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.bottleneck_width % self.num_heads:
            raise ValueError(
                f"bottleneck_width must be a multiple of num_heads, got width {self.bottleneck_width} "
                f"and {self.num_heads} heads"
            )

    @property
    def hidden_width(self) -> int:
        return 4 * self.bottleneck_width if self.mlp_width is None else self.mlp_width


class _MultiheadWeights(nn.Module):
    """Packed attention weights under the names of `nn.MultiheadAttention`, initialised as there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)


class _Attention(nn.Module):
    def __init__(self, config: ShortcutConfig) -> None:
        super().__init__()
        self.mha = _MultiheadWeights(config.bottleneck_width)
        self.num_heads = config.num_heads
        self.dropout = config.dropout

    def forward(self, query_XTD: Tensor, context_XND: Tensor) -> Tensor:
        width = query_XTD.shape[-1]
        weight, bias = self.mha.in_proj_weight, self.mha.in_proj_bias
        query_XTD = F.linear(query_XTD, weight[:width], bias[:width])
        pair_XNE = F.linear(context_XND, weight[width:], bias[width:])
        query_XHTd = query_XTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        pair_2XHNd = pair_XNE.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        out_XHTd = attend(query_XHTd, pair_2XHNd[0], pair_2XHNd[1], dropout=dropout)
        return self.mha.out_proj(out_XHTd.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, config: ShortcutConfig) -> None:
        super().__init__()
        width = config.bottleneck_width
        sizes = (width, config.hidden_width, config.dropout)
        self.cross_attn = PreNorm(width, _Attention(config))
        self.cross_attn_ff = PreNorm(width, FeedForward(*sizes))
        self.self_attn = PreNorm(width, _Attention(config))
        self.self_attn_ff = PreNorm(width, FeedForward(*sizes))

    def forward(self, x_XTD: Tensor, decided_XND: Tensor) -> Tensor:
        x_XTD = self.cross_attn_ff(self.cross_attn(x_XTD, decided_XND))
        return self.self_attn_ff(self.self_attn(x_XTD, x_XTD))


def time_embedder(width: int, num_frequencies: int) -> TimeEmbedding:
    """Of the masked ratio times `TIME_SCALE`, as released."""
    hidden_width = round(math.sqrt(width * num_frequencies))
    return TimeEmbedding(width, num_frequencies=num_frequencies, hidden_width=hidden_width)


class Shortcut(nn.Module):
    """Old features and fresh tokens in, predicted features out."""

    def __init__(self, config: ShortcutConfig) -> None:
        super().__init__()
        self.config = config
        outer, width = config.width, config.bottleneck_width
        projected = outer != width
        self.proj_in = nn.Linear(outer, width) if projected else nn.Identity()
        self.proj_out = nn.Linear(width, outer) if projected else nn.Identity()
        self.new_token_proj_in = nn.Linear(outer, width) if projected else nn.Identity()
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_blocks))
        self.last_layer = nn.Sequential(
            nn.LayerNorm(width, eps=_EDGE_EPS),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps=_EDGE_EPS),
        )
        self.time_embedder, self.adaLN_modulation = None, None
        if config.time_frequencies is not None:
            self.time_embedder = time_embedder(width, config.time_frequencies)
            self.adaLN_modulation = nn.Linear(width, 2 * width)

    def forward(self, features_XTD: Tensor, embedded_XND: Tensor, masked_ratio_X: Tensor) -> Tensor:
        """Features of the coming step.

        Args:
            features_XTD: of the step before, last hidden states after the final norm.
            embedded_XND: the base's token plus position embeddings of the tokens decided there, in any order.
            masked_ratio_X: share of the canvas still masked after those tokens, in [0, 1].
        """
        x_XTD = self.proj_in(features_XTD)
        decided_XND = self.new_token_proj_in(embedded_XND)
        for block in self.blocks:
            x_XTD = block(x_XTD, decided_XND)
        x_XTD = self.last_layer(x_XTD)
        if self.time_embedder is not None and self.adaLN_modulation is not None:
            modulation_X1E = self.adaLN_modulation(self.time_embedder(TIME_SCALE * masked_ratio_X.float()))[
                :, None
            ]
            scale_X1D, shift_X1D = modulation_X1E.chunk(2, dim=-1)
            x_XTD = torch.addcmul(x_XTD + shift_X1D, x_XTD, scale_X1D)
        return features_XTD + self.proj_out(x_XTD)

    @staticmethod
    def fresh(model: MaskedGenerator, condition: Condition, decision: Decision) -> Tensor:
        """What `forward` reads after `decision`, the same for every branch of `condition`: [G * B, N, D]."""
        embedded_BND = model.embed(decision.tokens_BN, decision.positions_BN)
        return embedded_BND.repeat(condition.num_branches, 1, 1)

    def start_as_copy(self) -> Self:
        """Zero the update, so that training starts from "features stay as they are" (upstream does not)."""
        last: list[nn.Module | None] = [self.last_layer[-1], self.adaLN_modulation]
        for layer in [self.proj_out] if isinstance(self.proj_out, nn.Linear) else last:
            for parameter in layer.parameters() if layer is not None else ():
                nn.init.zeros_(parameter)
        return self

    @torch.no_grad()
    def fit_to_embeddings(self, embedded_XND: Tensor) -> Self:
        """Rescale the projection of fresh tokens so that these embeddings come out with unit variance.

        Attention reads them un-normalised: with a base whose embeddings are small (0.1) its keys are all but
        equal, and training starts blind to what was decided (upstream does not do this; docs/log.md).
        """
        if isinstance(self.new_token_proj_in, nn.Linear):
            nn.init.zeros_(self.new_token_proj_in.bias)
            self.new_token_proj_in.weight.div_(self.new_token_proj_in(embedded_XND).std())
        return self
