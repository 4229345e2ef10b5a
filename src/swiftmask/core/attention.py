"""Attention as this package computes it, where a model asks for nothing special."""

import torch.nn.functional as F
from torch import Tensor


def attend(q_BNTH: Tensor, k_BNTH: Tensor, v_BNTH: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Every row attends to every row: [B, heads, T, H].

    Fused, but for training on a CPU: there the backward pass of two plain matmuls takes a quarter to a third
    of the fused one's time at a few hundred rows (docs/log.md).
    """
    if q_BNTH.requires_grad and q_BNTH.device.type == "cpu" and dropout == 0.0:
        scores_BNTT = (q_BNTH * q_BNTH.shape[-1] ** -0.5) @ k_BNTH.transpose(-1, -2)
        return scores_BNTT.softmax(-1).to(v_BNTH.dtype) @ v_BNTH
    return F.scaled_dot_product_attention(q_BNTH, k_BNTH, v_BNTH, dropout_p=dropout)
