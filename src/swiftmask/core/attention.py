"""Attention of every model and shortcut of this package: which kernel computes it, by device, dtype and size.

PyTorch's fused attention, with two exceptions on CPUs with AVX-512:

* Training runs two plain matmuls over everything. On an AMD EPYC with avx512_bf16 their backward pass takes a
  quarter to a third of the fused one's time at a few hundred rows (docs/log.md).
* bfloat16 without gradients, with bfloat16 matmul instructions (avx512_bf16, without AMX), from 1024 x 1024
  scores a head on: `attend_in_blocks`. The fused kernel runs at 15 to 23 % of the matmul peak there. Two
  plain matmuls over two heads of one image at a time were measured on that EPYC, 2 threads, against the fused
  kernel: 2.3x (MaskGIT-512, heads of 48), 1.7x (its shortcut, heads of 24), 2.6x (Meissonic-512, heads of
  128), 3.0x (Lumina-DiMOO, 4,000 tokens, heads of 128). Not measured: shorter sequences, AMX, and this code's
  own blocks on such a processor.

Without AVX-512 (AMD EPYC, Zen 3, one thread, other load beside it) the fused kernel was faster at every size
of the package: float32 blocks reach 0.3 to 0.9 of its speed (1.05 at 320 tokens of one image), bfloat16
blocks 0.03 to 0.07, and training with plain matmuls 0.4 to 0.7.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SCORES_AT_ONCE = 2_200_000
"""Scores of one block, which stay in the cache: two heads of MaskGIT-512's 1,025 tokens, 4.4 MB."""

_FEWEST_SCORES = 1024 * 1024
"""Scores a head from which on blocks were measured to be faster."""


def attend(
    q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, *, mask_B11S: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Every row attends to every other row, or to those where a mask is True: [B, heads, T, H].

    A row that may attend to none gets a mean that says nothing, but is finite.
    """
    if q_BNTH.device.type == "cpu" and not torch.compiler.is_compiling():
        if q_BNTH.requires_grad and _has("avx512_f"):
            return _attend_plainly(q_BNTH, k_BNSH, v_BNSH, mask_B11S, dropout)
        if not torch.is_grad_enabled() and _in_blocks_is_faster(q_BNTH, k_BNSH):
            return attend_in_blocks(q_BNTH, k_BNSH, v_BNSH, mask_B11S=mask_B11S)
    return F.scaled_dot_product_attention(q_BNTH, k_BNSH, v_BNSH, attn_mask=mask_B11S, dropout_p=dropout)


def attend_in_blocks(
    q_BNTH: Tensor,
    k_BNSH: Tensor,
    v_BNSH: Tensor,
    *,
    mask_B11S: Tensor | None = None,
    scores_at_once: int = SCORES_AT_ONCE,
) -> Tensor:
    """`attend` without gradients or dropout: two matmuls over a few heads of one row of the batch at a time.

    Where even one head has more scores than `scores_at_once`, its queries are cut into blocks. Scores are
    rounded to the input's dtype, which the fused kernel does not do: in bfloat16 the error of the result is 2
    to 5 times the fused kernel's, about 0.005 of its norm.
    """
    (B, N, T, H), S = q_BNTH.shape, k_BNSH.shape[2]
    rows = max(1, min(T, scores_at_once // S))
    heads = max(1, min(N, scores_at_once // (rows * S)))
    # Stored as [B, T, heads, H], the order in which the output projection reads it.
    out_BNTH = q_BNTH.new_empty(B, T, N, v_BNSH.shape[-1]).transpose(1, 2)
    lowest = torch.finfo(q_BNTH.dtype).min
    for image in range(B):
        hidden_11S = None if mask_B11S is None else ~mask_B11S.expand(B, 1, 1, S)[image]
        for head in range(0, N, heads):
            few = image, slice(head, head + heads)
            k_nHS, v_nSH = k_BNSH[few].transpose(1, 2), v_BNSH[few]
            for row in range(0, T, rows):
                block = (*few, slice(row, row + rows))
                scores_ntS = (q_BNTH[block] * H**-0.5) @ k_nHS
                if hidden_11S is not None:
                    scores_ntS.masked_fill_(hidden_11S, lowest)
                out_BNTH[block] = scores_ntS.softmax(-1) @ v_nSH
    return out_BNTH


def _attend_plainly(
    q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, mask_B11S: Tensor | None, dropout: float
) -> Tensor:
    scores_BNTS = (q_BNTH * q_BNTH.shape[-1] ** -0.5) @ k_BNSH.transpose(-1, -2)
    if mask_B11S is not None:
        scores_BNTS = scores_BNTS.masked_fill(~mask_B11S, torch.finfo(scores_BNTS.dtype).min)
    return F.dropout(scores_BNTS.softmax(-1).to(v_BNSH.dtype), dropout) @ v_BNSH


def _in_blocks_is_faster(q_BNTH: Tensor, k_BNSH: Tensor) -> bool:
    large = q_BNTH.shape[2] * k_BNSH.shape[2] >= _FEWEST_SCORES
    return large and q_BNTH.dtype == torch.bfloat16 and _has("avx512_bf16") and not _has("amx_bf16")


def _has(instructions: str) -> bool:
    """Whether the processor has these instructions; False where PyTorch cannot tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get(instructions))


def padding_on_host(padding: Sequence[int]) -> Tensor | None:
    """What `attend_padded` takes: int64 [B] on the CPU, None if `padding` is empty."""
    return torch.tensor(padding, dtype=torch.int64, device="cpu") if padding else None


def attend_padded(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, padding_B: Tensor | None) -> Tensor:
    """`attend` with keys that are padded on the left: [B, heads, T, H].

    Without a mask, as GPUs fall back from flash attention to slower kernels with one. Neighbouring rows with
    equal padding share one call, on their keys without the padding. In compiled code this is one operation
    that reads the padding when it runs, so that no other padding compiles anything; it has no gradient, and
    compiled training takes a mask.

    Args:
        padding_B: int64, on the CPU: how many keys at the start of each row do not count; None if all do. A
            row in which none counts attends to its last key: the result is finite and means nothing.
    """
    if padding_B is None:
        return attend(q_BNTH, k_BNSH, v_BNSH)
    if not torch.compiler.is_compiling():
        return _attend_to_rest(q_BNTH, k_BNSH, v_BNSH, padding_B)
    if q_BNTH.requires_grad or k_BNSH.requires_grad or v_BNSH.requires_grad:
        keys_S = torch.arange(k_BNSH.shape[2], device=k_BNSH.device)
        first_B1 = padding_B.to(k_BNSH.device).clamp(max=k_BNSH.shape[2] - 1)[:, None]
        return attend(q_BNTH, k_BNSH, v_BNSH, mask_B11S=(keys_S >= first_B1)[:, None, None])
    return _attend_padded_opaquely(q_BNTH, k_BNSH, v_BNSH, padding_B).transpose(1, 2)


# Recorded in a CUDA graph, the operation would repeat the first decode's padding for ever.
@torch.library.custom_op("swiftmask::attend_padded", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _attend_padded_opaquely(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, padding_B: Tensor) -> Tensor:
    """`attend_padded`, contiguous in the order [B, T, heads, H]."""
    return _attend_to_rest(q_BNTH, k_BNSH, v_BNSH, padding_B).transpose(1, 2).contiguous()


@_attend_padded_opaquely.register_fake
def _(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, padding_B: Tensor) -> Tensor:
    B, N, T, _ = q_BNTH.shape
    return q_BNTH.new_empty(B, T, N, v_BNSH.shape[-1])


def _attend_to_rest(q_BNTH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, padding_B: Tensor) -> Tensor:
    """`attend_padded`, a call for each run of equal padding."""
    padding = padding_B.tolist()
    if not any(padding):
        return attend(q_BNTH, k_BNSH, v_BNSH)
    last = k_BNSH.shape[2] - 1
    outputs = [
        attend(q_BNTH[rows], k_BNSH[rows, :, min(first, last) :], v_BNSH[rows, :, min(first, last) :])
        for rows, first in _runs(padding)
    ]
    # Fused kernels write [B, T, heads, H]; joining them in that order saves a copy later.
    return torch.cat([out_BNTH.transpose(1, 2) for out_BNTH in outputs]).transpose(1, 2)


def _runs(values: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Where neighbours are equal, and what they are."""
    start = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[start]:
            yield slice(start, end), values[start]
            start = end
