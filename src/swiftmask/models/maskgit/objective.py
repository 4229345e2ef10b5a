"""MaskGIT's training objective: predict the codes that were masked (Chang et al., arXiv 2202.04200, section
3.1).

As in valeoai v1.0, each picture draws r ~ U(0, 1) and masks every token with probability arccos(r) /
(pi/2), a tenth of the labels are dropped for guidance, and positions that were not masked are predicted too
(the shortcut reads their features),
here with a small weight. Left out: label smoothing, which a small model reads as noise in its samples.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.models.maskgit.network import Transformer, TransformerConfig

LABEL_DROP = 0.1
VISIBLE_WEIGHT = 0.1
"""Weight of positions that were not masked, relative to masked ones."""


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """Input ids of the whole sequence [B, L + 1], target codes [B, L], and which were masked [B, L]."""

    ids_BT: Tensor
    codes_BL: Tensor
    masked_BL: Tensor

    @classmethod
    def draw(
        cls, codes_BL: Tensor, labels_B: Tensor, config: TransformerConfig, generator: torch.Generator
    ) -> Self:
        """Mask codes and drop labels with `generator` (on the CPU)."""
        ratio_B1 = torch.rand(len(codes_BL), 1, generator=generator).arccos() / (math.pi / 2)
        masked_BL = torch.rand(codes_BL.shape, generator=generator) < ratio_B1
        dropped_B = torch.rand(len(codes_BL), generator=generator) < LABEL_DROP
        class_B = torch.where(dropped_B, config.null_id, config.first_class_id + labels_B)
        ids_BL = codes_BL.masked_fill(masked_BL, config.mask_id)
        return cls(torch.cat([ids_BL, class_B[:, None]], dim=1), codes_BL, masked_BL)


class TransformerTrainer(nn.Module):
    """The transformer with its loss as `forward`, so that data-parallel wrapping sees one call per step."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, batch: MaskedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy over masked positions plus a little over visible ones; accuracy on masked ones."""
        features_BLD = self.transformer(batch.ids_BT)[:, :-1]
        logits_BLK = self.transformer.logits(features_BLD)
        error_BL = F.cross_entropy(logits_BLK.transpose(1, 2), batch.codes_BL, reduction="none")
        num_masked = batch.masked_BL.sum().clamp(min=1)
        masked_loss = (error_BL * batch.masked_BL).sum() / num_masked
        visible_loss = (error_BL * ~batch.masked_BL).sum() / (~batch.masked_BL).sum().clamp(min=1)
        right_BL = (logits_BLK.detach().argmax(-1) == batch.codes_BL) & batch.masked_BL
        metrics = {"masked_loss": masked_loss, "accuracy": right_BL.sum() / num_masked}
        return masked_loss + VISIBLE_WEIGHT * visible_loss, metrics
