"""Which positions to decide now: after sampling, by confidence; or before, by an order fixed at the start."""

import torch
from torch import Tensor

from swiftmask.core.protocol import Head, Noise, UnmaskRule
from swiftmask.core.types import Canvas, Decision, Step, Trajectory


def by_confidence(head: Head, canvas: Canvas, step: Step, noise: Noise) -> Decision:
    """MaskGIT: sample every masked position, keep what the model is surest of (plus annealed Gumbel noise).

    The confidence is the log-probability under the temperature the token was sampled with. Exactly
    `step.num_decided` positions per image are kept (top-k indices, not a threshold: ties cannot change the
    count).
    """
    positions_BM = canvas.masked_positions()
    tokens_BM, log_prob_BM = head(positions_BM).sample(noise, step)
    if log_prob_BM is None:
        raise ValueError(
            "by_confidence needs a token head that can score: use by_order for continuous tokens"
        )
    gumbel_BM = noise.gumbel(positions_BM)
    confidence_BM = log_prob_BM + step.choice_temperature * gumbel_BM
    kept_BN = confidence_BM.topk(step.num_decided, dim=1).indices.sort(dim=1).values
    return Decision(
        positions_BM.gather(1, kept_BN), tokens_BM.gather(1, kept_BN), log_prob_BM.gather(1, kept_BN)
    )


def by_order(order_BM: Tensor) -> UnmaskRule:
    """MAR: positions are fixed before the loop, so a costly head runs only where a token is decided.

    Args:
        order_BM: the masked positions of every image, first to decide first (see `order_masked`).
    """

    def rule(head: Head, canvas: Canvas, step: Step, noise: Noise) -> Decision:
        start = order_BM.shape[1] - step.num_masked_before
        positions_BN = order_BM[:, start : start + step.num_decided]
        return Decision(positions_BN, *head(positions_BN).sample(noise, step))

    return rule


def as_recorded(trajectory: Trajectory) -> UnmaskRule:
    """Decides what `trajectory` decided, scoring it again: decoding with this rule replays it,
    differentiably.
    """

    def rule(head: Head, canvas: Canvas, step: Step, noise: Noise) -> Decision:
        positions_BN = trajectory.decided_in(step)
        tokens = trajectory.tokens_BL
        index = positions_BN if tokens.ndim == 2 else positions_BN[..., None].expand(-1, -1, tokens.shape[-1])
        tokens_BN = tokens.gather(1, index)
        return Decision(positions_BN, tokens_BN, head(positions_BN).log_prob(tokens_BN, step.temperature))

    return rule


def order_masked(order_BL: Tensor, canvas: Canvas) -> Tensor:
    """The masked positions of `canvas`, in the order they have in `order_BL` [B, L]: int64 [B, M]."""
    first = canvas.masked_BL.gather(1, order_BL).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return order_BL.gather(1, first[:, : canvas.num_masked])
