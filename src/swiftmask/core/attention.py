"""Attention as this package computes it, where a model asks for nothing special."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, *, mask_B11S: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Every row attends to every other row, or to those where a mask is True: [B, heads, T, H].

    Fused, but for training on a CPU: there the backward pass of two plain matmuls takes a quarter to a third
    of the fused one's time at a few hundred rows (docs/log.md). A row that may attend to none gets a mean
    that says nothing, but is finite.
    """
    if not (q_BNTH.requires_grad and q_BNTH.device.type == "cpu"):
        return F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, attn_mask=mask_B11S, dropout_p=dropout)
    scores_BNTS = (q_BNTH * q_BNTH.shape[-1] ** -0.5) @ k_BNSH.transpose(-1, -2)
    if mask_B11S is not None:
        scores_BNTS = scores_BNTS.masked_fill(~mask_B11S, torch.finfo(scores_BNTS.dtype).min)
    return F.dropout(scores_BNTS.softmax(-1).to(v_BNSH.dtype), dropout) @ v_BNSH
