"""The shortcut network for bases with rotary positions (MIGM-Shortcut, arXiv 2602.23996, for Lumina-DiMOO).

`next features = old features + f(old features, fresh tokens, share of the canvas still masked)`, as in
network.py, but of Llama blocks: positions enter as rotations of queries and keys by their places in the
sequence. Besides the codes just decided, the conditional branch reads its prompt, at every step. Module names
are those of the released checkpoint. Two quirks are kept: the feed-forward width is the base's own (six times
the bottleneck), and fresh tokens share the norm of the features that query them.
"""

from dataclasses import dataclass
from typing import Any, Protocol, Self, cast

from torch import Tensor, nn

from swiftmask.core.attention import padding_on_host
from swiftmask.core.llama import FreshTokens, LlamaBlock, RMSNorm, Rotary
from swiftmask.core.ranges import check_fields
from swiftmask.core.types import Decision
from swiftmask.methods.shortcut.network import TIME_SCALE, time_embedder


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryShortcutConfig:
    """Sizes of the shortcut.

    Attributes:
        width: of the base model's features.
        bottleneck_width: inside the shortcut.
        time_frequencies: length of the sinusoid of the masked ratio.
        rope_theta: base of the rotary frequencies.
    """

    width: int
    bottleneck_width: int
    num_heads: int
    mlp_width: int
    num_blocks: int = 1
    time_frequencies: int = 256
    rope_theta: float = 500000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)
        if self.bottleneck_width % self.num_heads or self.head_width % 2:
            raise ValueError(
                "bottleneck_width must be num_heads times an even number, got width "
                f"{self.bottleneck_width} and {self.num_heads} heads"
            )

    @property
    def head_width(self) -> int:
        return self.bottleneck_width // self.num_heads


class RotaryModel(Protocol):
    """What this shortcut needs of a base model besides the contract."""

    @property
    def rope_theta(self) -> float:
        """Base of its rotary frequencies."""
        ...

    def fresh_tokens(self, condition: Any, tokens_BN: Tensor, positions_BN: Tensor) -> FreshTokens: ...


class RotaryShortcut(nn.Module):
    """Old features and fresh tokens in, predicted features out."""

    def __init__(self, config: RotaryShortcutConfig) -> None:
        super().__init__()
        self.config = config
        outer, width = config.width, config.bottleneck_width
        self.proj_in = nn.Linear(outer, width)
        self.proj_out = nn.Linear(width, outer)
        self.new_token_proj_in = nn.Linear(outer, width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_blocks))
        self.ln_f = RMSNorm(width, config.norm_eps)
        self.time_embedder = time_embedder(width, config.time_frequencies)
        self.adaLN_modulation = nn.Linear(width, 2 * width)

    def forward(self, features_XTD: Tensor, fresh: FreshTokens, masked_ratio_X: Tensor) -> Tensor:
        """Features of the coming step.

        Args:
            features_XTD: of the step before, last hidden states after the final norm.
            masked_ratio_X: share of the canvas still masked after the fresh tokens, in [0, 1].
        """
        rows = self._rotary(fresh.row_places_XT), padding_on_host(fresh.row_padding)
        keys = self._rotary(fresh.places_XN), padding_on_host(fresh.padding)
        x_XTD = self.proj_in(features_XTD)
        fresh_XND = self.new_token_proj_in(fresh.embedded_XND)
        for block in self.blocks:
            x_XTD = block(x_XTD, fresh_XND, rows, keys)
        modulation_X1E = self.adaLN_modulation(self.time_embedder(TIME_SCALE * masked_ratio_X.float()))[
            :, None
        ]
        scale_X1D, shift_X1D = modulation_X1E.chunk(2, dim=-1)
        return features_XTD + self.proj_out(self.ln_f(x_XTD) * (1 + scale_X1D) + shift_X1D)

    @staticmethod
    def fresh(model: object, condition: object, decision: Decision) -> FreshTokens:
        """What `forward` reads after `decision`, from a base that has `fresh_tokens`."""
        base = cast(RotaryModel, model)
        return base.fresh_tokens(condition, decision.tokens_BN, decision.positions_BN)

    def start_as_copy(self) -> Self:
        """Zero the update, so that training starts from "features stay as they are" (upstream does not)."""
        for parameter in self.proj_out.parameters():
            nn.init.zeros_(parameter)
        return self

    def _rotary(self, places_XT: Tensor) -> Rotary:
        return Rotary.at(places_XT, self.config.head_width, self.config.rope_theta)


_Placed = tuple[Rotary, Tensor | None]


class _Block(nn.Module):
    def __init__(self, config: RotaryShortcutConfig) -> None:
        super().__init__()
        sizes = (config.bottleneck_width, config.num_heads, config.mlp_width)
        self.cross_attn = LlamaBlock(*sizes, eps=config.norm_eps)
        self.self_attn = LlamaBlock(*sizes, eps=config.norm_eps)

    def forward(self, x_XTD: Tensor, fresh_XND: Tensor, rows: _Placed, keys: _Placed) -> Tensor:
        (row_rotary, row_padding_X), (key_rotary, key_padding_X) = rows, keys
        query = self.cross_attn.project_queries(x_XTD, row_rotary)
        key, value = self.cross_attn.project_keys(fresh_XND, key_rotary)
        x_XTD = self.cross_attn.finish(x_XTD, query, key, value, key_padding_X)
        return self.self_attn(x_XTD, row_rotary, row_padding_X)
