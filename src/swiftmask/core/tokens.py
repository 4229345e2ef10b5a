"""Categorical tokens and the package's one convention of classifier-free guidance.

Precision, for every model: guidance mixes in float32 and rounds features back to their own dtype
(`guided_rows`), a head runs in the dtype of its weights, and everything after it is float32
(`CategoricalTokens`). A float32 head would not help: with bfloat16 features it lowers the error of logits by
2 % at most.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from swiftmask.core.protocol import MaskedGenerator, Noise
from swiftmask.core.types import Step


def guide(branches_GX: Tensor, guidance: float) -> Tensor:
    """`null + guidance * (conditional - null)` over the leading branch axis, in float32; 1.0 is off.

    Linear, so a model with a linear head mixes features and runs the head once. Upstream samplers that write
    `(1 + w) c - w u` use `guidance = 1 + w`.
    """
    if guidance == 1.0 or branches_GX.shape[0] == 1:
        return branches_GX[0]
    conditional, null = branches_GX.float()
    return null + guidance * (conditional - null)


def gather_rows(features_GBTD: Tensor, rows_BM: Tensor) -> Tensor:
    """The rows `rows_BM` of every branch: [G, B, M, D]."""
    index = rows_BM[None, :, :, None].expand(features_GBTD.shape[0], -1, -1, features_GBTD.shape[-1])
    return features_GBTD.gather(2, index)


def feature_rows(model: MaskedGenerator, positions_BM: Tensor, num_rows: int) -> Tensor:
    """Rows of canvas positions among `num_rows` features: the first ones in order, unless the model's
    `columns` says otherwise.
    """
    columns: Callable[[Tensor, int], Tensor] | None = getattr(model, "columns", None)
    return positions_BM if columns is None else columns(positions_BM, num_rows)


def guided_rows(features_GBTD: Tensor, rows_BM: Tensor, guidance: float) -> Tensor:
    """What a linear head reads: the rows `rows_BM` of the features, guided, in their dtype: [B, M, D]."""
    return guide(gather_rows(features_GBTD, rows_BM), guidance).to(features_GBTD.dtype)


@dataclass(frozen=True, slots=True)
class CategoricalTokens:
    """Codes at some positions, from guided logits [B, M, V].

    Attributes:
        logits_BMV: over image codes only, in the dtype of the head; all that follows is float32.
        positions_BM: which canvas positions the rows belong to (the noise streams are addressed by position).
    """

    logits_BMV: Tensor
    positions_BM: Tensor

    def _log_probs(self, temperature: float) -> Tensor:
        return (self.logits_BMV.float() / temperature).log_softmax(-1)

    def sample(self, noise: Noise, step: Step) -> tuple[Tensor, Tensor]:
        """Codes int64 [B, M] from softmax(logits / temperature), and their log-probabilities."""
        log_probs_BMV = self._log_probs(step.temperature)
        tokens_BM = noise.categorical(log_probs_BMV.exp(), self.positions_BM)
        return tokens_BM, log_probs_BMV.gather(-1, tokens_BM[..., None])[..., 0]

    def log_prob(self, tokens_BM: Tensor, temperature: float) -> Tensor:
        """log softmax(logits / temperature) at the given codes, float32 [B, M]."""
        return self._log_probs(temperature).gather(-1, tokens_BM[..., None])[..., 0]

    def entropy(self, temperature: float) -> Tensor:
        """Entropy in nats, float32 [B, M]."""
        log_probs_BMV = self._log_probs(temperature)
        return -torch.sum(log_probs_BMV.exp() * log_probs_BMV, dim=-1)
