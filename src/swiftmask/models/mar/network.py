"""MAR's encoder-decoder (Li et al., arXiv 2406.11838, section 3.5), with its token head, as released.

An MAE-like pair: the encoder sees buffer rows, which carry the class, and the tokens known so far; the
decoder puts a mask token wherever none is known and gives the head's condition z at every position. Masked
tokens never enter, so only known ones are projected. Module names are those of the released checkpoints, so
their weights load without a key map.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.attention import attend
from swiftmask.core.embeddings import composed
from swiftmask.core.ranges import check_fields
from swiftmask.core.types import Canvas
from swiftmask.models.mar.head import HeadNetwork

GuidanceSchedule = Literal["linear", "constant"]
"""How guidance grows over a decode: with the share of decided tokens, or not at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Sizes of MAR.

    Attributes:
        channels: of a token: those of a latent times `patch_size` squared.
        grid: tokens along one side of an image.
        buffer_size: rows with the class that stand before the tokens, in the encoder and in the decoder.
        head_width, head_depth: of the diffusion MLP.
        patch_size: places of the latent along one side of a token.
        dropout: in training, on attention and after the linear layers of a block.
        class_attributes: how many values each attribute of a class has, such as its concept and its style. A
            class is then the sum of one vector for each. Empty, as in the released models, gives each class a
            vector of its own.
    """

    encoder_width: int
    encoder_depth: int
    encoder_heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    channels: int
    grid: int
    num_classes: int
    head_width: int
    head_depth: int
    buffer_size: int = 64
    mlp_ratio: float = 4.0
    patch_size: int = 1
    dropout: float = 0.1
    class_attributes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        for part, width, heads in (
            ("encoder", self.encoder_width, self.encoder_heads),
            ("decoder", self.decoder_width, self.decoder_heads),
        ):
            if width % heads:
                raise ValueError(
                    f"{part}_width must be a multiple of its heads, got {width} and {heads} heads"
                )
        if self.channels % self.patch_size**2:
            raise ValueError(
                f"channels must be a multiple of patch_size squared, got {self.channels} and patch_size "
                f"{self.patch_size}"
            )

    @property
    def num_tokens(self) -> int:
        return self.grid**2


@dataclass(frozen=True, slots=True)
class KnownTokens:
    """The tokens the encoder sees.

    Attributes:
        tokens_BNC: float [B, N, C].
        positions_BN: int64 [B, N], where they lie; no position twice.
        present_BN: bool [B, N], False for rows that only fill up an image with fewer known tokens than
            others (they name positions that are masked); None if every row counts.
    """

    tokens_BNC: Tensor
    positions_BN: Tensor
    present_BN: Tensor | None = None

    @classmethod
    def of(cls, canvas: Canvas) -> Self:
        """The decided tokens of a canvas, in raster order."""
        return cls.at(canvas.tokens_BL, canvas.known_positions())

    @classmethod
    def at(cls, tokens_BLC: Tensor, positions_BN: Tensor, present_BN: Tensor | None = None) -> Self:
        """The tokens of a whole image at some positions."""
        index_BNC = positions_BN[..., None].expand(-1, -1, tokens_BLC.shape[-1])
        return cls(tokens_BLC.gather(1, index_BNC), positions_BN, present_BN)

    def repeat(self, num_branches: int) -> Self:
        """The same tokens for every branch: [G * B, N]."""
        present_BN = None if self.present_BN is None else self.present_BN.repeat(num_branches, 1)
        tokens_BNC, positions_BN = self.tokens_BNC, self.positions_BN
        return type(self)(
            tokens_BNC.repeat(num_branches, 1, 1), positions_BN.repeat(num_branches, 1), present_BN
        )


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.num_heads = num_heads
        self.dropout = dropout

    def forward(self, x_XTD: Tensor, attended_X11T: Tensor | None) -> Tensor:
        q_XNTH, k_XNTH, v_XNTH = self.qkv(x_XTD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        out_XNTH = attend(q_XNTH, k_XNTH, v_XNTH, mask_B11S=attended_X11T, dropout=dropout)
        return F.dropout(self.proj(out_XNTH.transpose(1, 2).flatten(2)), dropout, self.training)


class _MLP(nn.Module):
    def __init__(self, width: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)
        self.dropout = dropout

    def forward(self, x_XTD: Tensor) -> Tensor:
        hidden = self.fc1(x_XTD)
        if self.training or hidden.requires_grad:
            hidden = F.dropout(F.gelu(hidden), self.dropout, self.training)
            return F.dropout(self.fc2(hidden), self.dropout, self.training)
        # In place where nothing is differentiated: GELU into fresh memory costs as much as a matmul on a CPU.
        return self.fc2(torch.ops.aten.gelu_(hidden))


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, config: NetworkConfig) -> None:
        super().__init__()
        self.norm1 = _norm(width)
        self.attn = _Attention(width, num_heads, config.dropout)
        self.norm2 = _norm(width)
        self.mlp = _MLP(width, int(width * config.mlp_ratio), config.dropout)

    def forward(self, x_XTD: Tensor, attended_X11T: Tensor | None = None) -> Tensor:
        x_XTD = x_XTD + self.attn(self.norm1(x_XTD), attended_X11T)
        return x_XTD + self.mlp(self.norm2(x_XTD))


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)


class Network(nn.Module):
    """Encoder, decoder and head. `head` is the diffusion MLP."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width, out_width = config.encoder_width, config.decoder_width
        self.fake_latent = nn.Parameter(torch.empty(1, width))
        attributes = config.class_attributes
        self.class_emb = nn.Embedding(sum(attributes) or config.num_classes, width)
        if attributes:
            rows_CA = torch.zeros(config.num_classes, len(attributes), dtype=torch.int32)
            self.register_buffer("class_rows", rows_CA)
        self.mask_token = nn.Parameter(torch.empty(1, 1, out_width))
        num_rows = config.buffer_size + config.num_tokens
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, num_rows, width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, num_rows, out_width))
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, config.num_tokens, out_width))
        self.z_proj = nn.Linear(config.channels, width)
        self.z_proj_ln = _norm(width)
        self.encoder_blocks = nn.ModuleList(
            _Block(width, config.encoder_heads, config) for _ in range(config.encoder_depth)
        )
        self.encoder_norm = _norm(width)
        self.decoder_embed = nn.Linear(width, out_width)
        self.decoder_blocks = nn.ModuleList(
            _Block(out_width, config.decoder_heads, config) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = _norm(out_width)
        self._initialise(self.modules())
        head = HeadNetwork(
            channels=config.channels,
            context_width=out_width,
            width=config.head_width,
            depth=config.head_depth,
        )
        self.diffloss = nn.ModuleDict({"net": head})

    def _initialise(self, modules: Iterable[nn.Module]) -> None:
        for parameter in self.parameters(recurse=False):
            nn.init.normal_(parameter, std=0.02)
        for module in modules:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.class_emb.weight, std=0.02)

    @property
    def head(self) -> HeadNetwork:
        head = self.diffloss["net"]
        assert isinstance(head, HeadNetwork)
        return head

    def class_vectors(self, labels_B: Tensor) -> Tensor:
        """What the buffer rows carry for a class: [B, D]."""
        if not self.config.class_attributes:
            return self.class_emb(labels_B)
        return composed(self.class_emb.weight, self.get_buffer("class_rows"), labels_B)

    def null_vectors(self, batch: int) -> Tensor:
        """What they carry when no class is asked for: [B, D]."""
        return self.fake_latent.expand(batch, -1)

    def embed(self, tokens_BNC: Tensor, positions_BN: Tensor) -> Tensor:
        """Projected tokens plus the encoder's positions: [B, N, D]."""
        positions_LD = self.encoder_pos_embed_learned[0, self.config.buffer_size :]
        projected_BND = self.z_proj(tokens_BNC.to(self.z_proj.weight.dtype))
        return projected_BND + F.embedding(positions_BN, positions_LD)

    def forward(self, known: KnownTokens, classes_XD: Tensor) -> Tensor:
        """The head's condition z at every position [X, L, D].

        Args:
            known: of every image.
            classes_XD: class vectors of every row: [B, D] or, with more branches, [G * B, D].
        """
        known_X = known.repeat(classes_XD.shape[0] // known.positions_BN.shape[0])
        return self.decode(self.encode(known_X, classes_XD), known_X)

    def encode(self, known: KnownTokens, classes_XD: Tensor) -> Tensor:
        """Encoded buffer rows, then known tokens: [X, buffer + N, D]."""
        num_buffer = self.config.buffer_size
        buffer_XTD = classes_XD[:, None] + self.encoder_pos_embed_learned[:, :num_buffer]
        known_XND = self.embed(known.tokens_BNC, known.positions_BN)
        x_XTD = self.z_proj_ln(torch.cat([buffer_XTD, known_XND], dim=1))
        attended_X11T = None
        if known.present_BN is not None:
            attended_X11T = F.pad(known.present_BN, (num_buffer, 0), value=True)[:, None, None]
        for block in self.encoder_blocks:
            x_XTD = block(x_XTD, attended_X11T)
        return self.encoder_norm(x_XTD)

    def decode(self, encoded_XTD: Tensor, known: KnownTokens) -> Tensor:
        """z [X, L, D]: encoded rows back at their places, a mask token at all others."""
        num_buffer = self.config.buffer_size
        embedded_XTD = self.decoder_embed(encoded_XTD)
        buffer_XTD, known_XND = embedded_XTD[:, :num_buffer], embedded_XTD[:, num_buffer:]
        mask_11D = self.mask_token.to(embedded_XTD.dtype)
        if known.present_BN is not None:
            known_XND = torch.where(known.present_BN[..., None], known_XND, mask_11D)
        every_XLD = mask_11D.expand(len(known_XND), self.config.num_tokens, -1)
        every_XLD = every_XLD.scatter(1, known.positions_BN[..., None].expand_as(known_XND), known_XND)
        x_XTD = torch.cat([buffer_XTD, every_XLD], dim=1) + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x_XTD = block(x_XTD)
        return self.decoder_norm(x_XTD[:, num_buffer:]) + self.diffusion_pos_embed_learned
