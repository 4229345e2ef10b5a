"""LLaDA-8B (Nie et al., arXiv 2502.09992), the backbone of Lumina-DiMOO: 32 Llama blocks that see both ways.

Module names are those of the released checkpoint, so its weights load without a key map. The head is a
matrix of its own; here it runs over chosen entries of the vocabulary only.
Left out: the attention bias that upstream builds from the lengths and never applies. Keys of padding are left
out for real instead.

Blocks whose weights are not where their input is are brought there, one at a time (offload.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.attention import padding_on_host
from swiftmask.core.llama import LlamaBlock, RMSNorm, Rotary
from swiftmask.core.ranges import check_fields
from swiftmask.models.lumina_dimoo.offload import arriving


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """Sizes of the backbone. `rope_theta` is the base of the rotary frequencies."""

    width: int
    depth: int
    num_heads: int
    mlp_width: int
    vocabulary_size: int
    rope_theta: float = 500000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width % self.num_heads or self.head_width % 2:
            raise ValueError(
                "width must be num_heads times an even number, got width "
                f"{self.width} and {self.num_heads} heads"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Turned keys and values of every block, [X, heads, T, H] each. `recompute` overwrites rows in place."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class _Transformer(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocabulary_size, config.width)
        self.blocks = nn.ModuleList(
            LlamaBlock(config.width, config.num_heads, config.mlp_width, eps=config.norm_eps)
            for _ in range(config.depth)
        )
        self.ln_f = RMSNorm(config.width, config.norm_eps)
        self.ff_out = nn.Linear(config.width, config.vocabulary_size, bias=False)


class _Wrapper(nn.Module):
    """Only lends its name to the keys."""

    def __init__(self, transformer: _Transformer) -> None:
        super().__init__()
        self.transformer = transformer


class Backbone(nn.Module):
    """Ids in, features out; `logits` is the head on top."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Wrapper(_Transformer(config))
        self._initialise()

    def _initialise(self) -> None:
        """OLMo's "mitchell", which upstream names: what a block adds shrinks with its depth."""
        transformer = self.model.transformer
        nn.init.normal_(transformer.wte.weight, std=self.config.width**-0.5)
        nn.init.normal_(transformer.ff_out.weight, std=self.config.width**-0.5)
        for depth, block in enumerate(self.blocks):
            for layer in (block.attn_out, block.ff_out):
                layer.weight.data.mul_((2 * (depth + 1)) ** -0.5)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.transformer.wte.weight.dtype

    @property
    def blocks(self) -> list[LlamaBlock]:
        """In order, wherever their weights are."""
        return [block for block in self.model.transformer.blocks if isinstance(block, LlamaBlock)]

    def embed(self, ids_XT: Tensor) -> Tensor:
        """Token embeddings [X, T, D]; positions enter as rotations only."""
        return self.model.transformer.wte(ids_XT)

    def forward(self, ids_XT: Tensor, places_XT: Tensor, padding: Sequence[int] = ()) -> Tensor:
        """Features [X, T, D] after the final norm.

        Args:
            places_XT: place of each token in its own sequence.
            padding: how many tokens at the start of each row do not count; their features mean nothing.
        """
        rotary, x_XTD = self.rotary(places_XT), self.embed(ids_XT)
        padding_X = padding_on_host(padding)
        for block in self._arriving(ids_XT.device):
            x_XTD = block(x_XTD, rotary, padding_X)
        return self.model.transformer.ln_f(x_XTD)

    def forward_with_cache(
        self, ids_XT: Tensor, places_XT: Tensor, padding: Sequence[int] = ()
    ) -> tuple[Tensor, LayerCache]:
        """`forward`, and the keys and values it computed."""
        rotary, padding_X = self.rotary(places_XT), padding_on_host(padding)
        x_XTD, keys, values = self.embed(ids_XT), [], []
        for block in self._arriving(ids_XT.device):
            query, key, value = block.project(x_XTD, rotary)
            # A view of the joined projection would keep queries and keys alive with it.
            value = value.clone(memory_format=torch.contiguous_format)
            keys.append(key)
            values.append(value)
            x_XTD = block.finish(x_XTD, query, key, value, padding_X)
        return self.model.transformer.ln_f(x_XTD), LayerCache(tuple(keys), tuple(values))

    def recompute(
        self,
        ids_XK: Tensor,
        rows_XK: Tensor,
        places_XT: Tensor,
        cache: LayerCache,
        padding: Sequence[int] = (),
    ) -> tuple[Tensor, LayerCache]:
        """Features [X, K, D] of some rows, which attend to the cached keys of all others, and the cache with
        the rows' own keys and values.

        Args:
            ids_XK: the tokens at `rows_XK` now; a row may be given twice.
            cache: left as it is: the record of the step before holds it.
            padding: of the whole rows, as in `forward`.
        """
        rotary, padding_X = self.rotary(places_XT.gather(1, rows_XK)), padding_on_host(padding)
        x_XKD, keys, values = self.embed(ids_XK), [], []
        blocks = self._arriving(ids_XK.device)
        for block, old_key, old_value in zip(blocks, cache.keys, cache.values, strict=True):
            query, key, value = block.project(x_XKD, rotary)
            index = rows_XK[:, None, :, None].expand_as(key)
            keys.append(old_key.scatter(2, index, key))
            values.append(old_value.scatter(2, index, value))
            x_XKD = block.finish(x_XKD, query, keys[-1], values[-1], padding_X)
        return self.model.transformer.ln_f(x_XKD), LayerCache(tuple(keys), tuple(values))

    def logits(self, features_XMD: Tensor, first: int, count: int) -> Tensor:
        """Scores of `count` vocabulary entries from `first`, in the dtype of the weights: [X, M, count]."""
        return F.linear(features_XMD, self.model.transformer.ff_out.weight[first : first + count])

    def rotary(self, places_XT: Tensor) -> Rotary:
        return Rotary.at(places_XT, self.config.head_width, self.config.rope_theta)

    def _arriving(self, device: torch.device) -> Iterable[LlamaBlock]:
        return arriving(self.blocks, device)
