"""The MaskGIT transformer (Chang et al., arXiv 2202.04200) in the shape of valeoai's v1.0 release.

A BERT-like encoder over the codes of an image and one class token, which comes last. Module names are those
of the released checkpoints, so their weights load without a key map. Two quirks are kept: the layers before
and after the blocks normalise with eps 1e-12 and the blocks with 1e-5, and the output bias is one value per
position and entry.
Left out: the 2024 rewrite (adaLN, registers, 16384 codes), which is another architecture.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.attention import attend
from swiftmask.core.embeddings import composed
from swiftmask.core.ranges import check_fields
from swiftmask.core.transformer import FeedForward, PreNorm

_EDGE_EPS = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Sizes of the transformer. Ids: codes 0..K-1, mask K, classes K+1..K+C, null class K+C+1.

    Attributes:
        class_attributes: how many values each attribute of a class has, such as its concept and its style. A
            class is then the sum of one vector for each; the embedding holds these in place of classes, and
            the bias codes alone. Empty, as in the released models, gives each class a vector of its own.
    """

    width: int
    depth: int
    num_heads: int
    mlp_width: int
    codebook_size: int
    num_classes: int
    grid: int
    dropout: float = 0.0
    class_attributes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width % self.num_heads:
            raise ValueError(
                f"width must be a multiple of num_heads, got width {self.width} and {self.num_heads} heads"
            )

    @property
    def num_tokens(self) -> int:
        """Image tokens, without the class token."""
        return self.grid**2

    @property
    def sequence_length(self) -> int:
        return self.num_tokens + 1

    @property
    def mask_id(self) -> int:
        return self.codebook_size

    @property
    def first_class_id(self) -> int:
        return self.codebook_size + 1

    @property
    def null_id(self) -> int:
        return self.codebook_size + 1 + self.num_classes

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding."""
        return self.codebook_size + 2 + (sum(self.class_attributes) or self.num_classes)


class _MultiheadWeights(nn.Module):
    """Packed attention weights under the names of `nn.MultiheadAttention`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)


class _Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.mha = _MultiheadWeights(config.width)
        self.num_heads = config.num_heads
        self.dropout = config.dropout

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv_BTX = F.linear(x_BTD, self.mha.in_proj_weight, self.mha.in_proj_bias)
        q_BNTH, k_BNTH, v_BNTH = (
            qkv_BTX.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        dropout = self.dropout if self.training else 0.0
        out_BNTH = attend(q_BNTH, k_BNTH, v_BNTH, dropout=dropout)
        return self.mha.out_proj(out_BNTH.transpose(1, 2).flatten(2))


class _Block(nn.Sequential):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(
            PreNorm(config.width, _Attention(config)),
            PreNorm(config.width, FeedForward(config.width, config.mlp_width, config.dropout)),
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        # Code is compiled per `forward`: that of nn.Sequential would be shared with other modules.
        attention, feed_forward = self
        return feed_forward(attention(x_BTD))


class _Blocks(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.depth))

    def forward(self, x_BTD: Tensor) -> Tensor:
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return x_BTD


class Transformer(nn.Module):
    """Ids in, features out; `logits` is the light head on top, tied to the token embedding."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.pos_emb = nn.Parameter(torch.empty(1, config.sequence_length, width))
        attributes, vocabulary_size = config.class_attributes, config.vocabulary_size
        biased = config.codebook_size if attributes else vocabulary_size
        self.bias = nn.Parameter(torch.zeros(config.sequence_length, biased))
        self.tok_emb = nn.Embedding(vocabulary_size, width)
        if attributes:
            rows_CA = torch.zeros(config.num_classes, len(attributes), dtype=torch.int32)
            self.register_buffer("class_rows", rows_CA)
        self.first_layer = nn.Sequential(
            nn.LayerNorm(width, eps=_EDGE_EPS),
            nn.Dropout(config.dropout),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps=_EDGE_EPS),
            nn.Dropout(config.dropout),
            nn.Linear(width, width),
        )
        self.transformer = _Blocks(config)
        self.last_layer = nn.Sequential(
            nn.LayerNorm(width, eps=_EDGE_EPS),
            nn.Dropout(config.dropout),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, eps=_EDGE_EPS),
        )
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and name != "bias":
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def embed(self, ids_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """Token plus position embedding [B, T, D]; without positions, the ids are the whole sequence."""
        if positions_BT is None:
            return self._vectors(ids_BT) + self.pos_emb
        return self.tok_emb(ids_BT) + F.embedding(positions_BT, self.pos_emb[0])

    def class_vectors(self, ids_BM: Tensor) -> Tensor:
        """Of ids of classes and of the null class: [B, M, D]."""
        config = self.config
        if not config.class_attributes:
            return self.tok_emb(ids_BM)
        labels_BM = (ids_BM - config.first_class_id).clamp(max=config.num_classes - 1)
        table_SD = self.tok_emb.weight[config.first_class_id : -1]
        sums_BMD = composed(table_SD, self.get_buffer("class_rows"), labels_BM)
        return torch.where((ids_BM == config.null_id)[..., None], self.tok_emb.weight[-1], sums_BMD)

    def _vectors(self, ids_BT: Tensor) -> Tensor:
        """Of a whole sequence, whose last token is the class."""
        if not self.config.class_attributes:
            return self.tok_emb(ids_BT)
        return torch.cat([self.tok_emb(ids_BT[:, :-1]), self.class_vectors(ids_BT[:, -1:])], dim=1)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Features [B, T, D] after the final norm, the class token's row last, from a whole row of ids."""
        if ids_BT.shape[-1] != self.config.sequence_length:
            raise ValueError(
                f"expected {self.config.sequence_length} ids a row (the grid, then the class), "
                f"got {ids_BT.shape[-1]}"
            )
        return self.last_layer(self.transformer(self.first_layer(self.embed(ids_BT))))

    def logits(self, features_BMD: Tensor, positions_BM: Tensor | None = None) -> Tensor:
        """Float32 logits [B, M, K] over the image codes only.

        `positions_BM` says where the M rows of the features lie; without it they are positions 0..M-1.
        """
        num_codes = self.config.codebook_size
        scores_BMK = F.linear(features_BMD, self.tok_emb.weight[:num_codes])
        bias_TK = self.bias[:, :num_codes]
        bias_BMK = bias_TK[: scores_BMK.shape[-2]] if positions_BM is None else bias_TK[positions_BM]
        return scores_BMK.float() + bias_BMK.float()
