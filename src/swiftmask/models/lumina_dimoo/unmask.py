"""Lumina-DiMOO's rule for which tokens to keep."""

from swiftmask.core.protocol import Head, Noise
from swiftmask.core.types import Canvas, Decision, Step


def by_plain_confidence(head: Head, canvas: Canvas, step: Step, noise: Noise) -> Decision:
    """`by_confidence`, but the confidence is the log-probability at temperature 1, whatever temperature the
    tokens were sampled with. The recorded log-probability stays the one they were sampled with.
    """
    positions_BM = canvas.masked_positions()
    distribution = head(positions_BM)
    tokens_BM, log_prob_BM = distribution.sample(noise, step)
    plain_BM = distribution.log_prob(tokens_BM, 1.0)
    assert log_prob_BM is not None
    assert plain_BM is not None
    confidence_BM = plain_BM + step.choice_temperature * noise.gumbel(positions_BM)
    kept_BN = confidence_BM.topk(step.num_decided, dim=1).indices.sort(dim=1).values
    return Decision(
        positions_BM.gather(1, kept_BN), tokens_BM.gather(1, kept_BN), log_prob_BM.gather(1, kept_BN)
    )
