"""The reference's bfloat16 sampler, for comparisons with it.

Upstream draws its Gumbel noise -log(-log u) from uniforms in bfloat16. A uniform then has 8 significant bits:
no noise exceeds 5.53, and the largest 0.2 % of the draws round to u = 1, which is taken for 0 and becomes the
lowest noise instead of the highest. Sampling is a truncated, greedier categorical (over 8192 codes, a few
hundred instead of thousands ever appear), and guided logits are rounded to steps of 0.25 to 1. So released
images were made, and an exact sampler gives other, noisier ones; but the softmax log-probabilities are not
those of what it draws, which reinforcement learning needs. Hence exact sampling is the default.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from swiftmask.core.protocol import Head, Noise
from swiftmask.core.types import Canvas, Decision, Step
from swiftmask.core.unmask import by_confidence

_TINY = 1e-20
"""Upstream's guard of logarithms; bfloat16 holds it."""


def truncated_gumbel(uniform: Tensor) -> Tensor:
    """Upstream's Gumbel noise, in bfloat16, of uniforms of a higher precision in (0, 1)."""
    rounded = uniform.bfloat16()
    wrapped = torch.where(rounded >= 1, 0.0, rounded)
    return -torch.log(-torch.log(wrapped + _TINY) + _TINY)


def _truncated(gumbel: Tensor) -> Tensor:
    return truncated_gumbel(torch.exp(-torch.exp(-gumbel)))


@dataclass(frozen=True, slots=True)
class _TruncatedNoise:
    """The image's own streams, with Gumbel noise as upstream would have rounded it."""

    noise: Noise

    def gumbel(self, positions_BM: Tensor) -> Tensor:
        return _truncated(self.noise.gumbel(positions_BM))

    def gumbel_per_code(self, positions_BM: Tensor, num_codes: int) -> Tensor:
        return _truncated(self.noise.gumbel_per_code(positions_BM, num_codes))

    def categorical(self, probs_BMV: Tensor, positions_BM: Tensor) -> Tensor:
        """Gumbel-max with one draw per code."""
        return (probs_BMV.log() + self.gumbel_per_code(positions_BM, probs_BMV.shape[-1])).argmax(-1)

    def permutation(self, num_tokens: int) -> Tensor:
        return self.noise.permutation(num_tokens)

    def normal(self, positions_BM: Tensor, channels: int) -> Tensor:
        return self.noise.normal(positions_BM, channels)


@dataclass(frozen=True, slots=True)
class TruncatedTokens:
    """Codes at some positions from guided logits in bfloat16, sampled and scored in bfloat16.

    Attributes:
        logits_BMV: as upstream rounds them (`guided_logits`).
    """

    logits_BMV: Tensor
    positions_BM: Tensor

    def sample(self, noise: Noise, step: Step) -> tuple[Tensor, Tensor]:
        """Codes, and the logarithm of their softmax at temperature 1, which upstream takes for confidence."""
        truncated = noise if isinstance(noise, _TruncatedNoise) else _TruncatedNoise(noise)
        gumbel_BMV = truncated.gumbel_per_code(self.positions_BM, self.logits_BMV.shape[-1])
        tokens_BM = (self.logits_BMV / step.temperature + gumbel_BMV).argmax(-1)
        prob_BM = self.logits_BMV.softmax(-1).gather(-1, tokens_BM[..., None])[..., 0]
        return tokens_BM, prob_BM.clamp(min=_TINY).log()

    def log_prob(self, tokens_BM: Tensor, temperature: float) -> Tensor:
        """Of the untruncated softmax, float32; the truncated draw has no closed form."""
        log_probs_BMV = (self.logits_BMV.float() / temperature).log_softmax(-1)
        return log_probs_BMV.gather(-1, tokens_BM[..., None])[..., 0]


def guided_logits(branches_GBMV: Tensor, guidance: float) -> Tensor:
    """`g c - (g - 1) u` in bfloat16, each product and the difference rounded, as upstream does."""
    low_GBMV = branches_GBMV.bfloat16()
    if guidance == 1.0 or len(low_GBMV) == 1:
        return low_GBMV[0]
    return guidance * low_GBMV[0] - (guidance - 1) * low_GBMV[1]


def by_truncated_confidence(head: Head, canvas: Canvas, step: Step, noise: Noise) -> Decision:
    """`by_confidence` with upstream's rounding of the noise on tokens and confidences."""
    return by_confidence(head, canvas, step, _TruncatedNoise(noise))
