"""Lumina-DiMOO's training objective: predict the codes that were masked (arXiv 2510.06308, section 3.3).

As upstream, each picture draws u ~ U(0, 1) and masks the share cos(pi u / 2) of its codes, at least one;
text, newlines and brackets are never masked; a tenth of the prompts give way to the null prompt; the loss is
the mean over all masked codes of the batch. Unlike upstream the logits cover picture codes only, and shorter
prompts are padded for real: upstream's padding is attended to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.models.lumina_dimoo.layout import Layout, PromptCondition
from swiftmask.models.lumina_dimoo.network import Backbone

PROMPT_DROP = 0.1


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """Everything one update reads.

    Attributes:
        condition: prompts (one branch), some of them dropped.
        codes_BL: target codes, and `masked_BL` which are masked.
    """

    condition: PromptCondition
    codes_BL: Tensor
    masked_BL: Tensor

    @classmethod
    def draw(
        cls,
        codes_BL: Tensor,
        prompts: Sequence[Sequence[int]],
        null_ids: Sequence[int],
        generator: torch.Generator,
    ) -> Self:
        """Mask codes and drop prompts with `generator` (on the CPU)."""
        batch, length = codes_BL.shape
        ratio_B1 = torch.cos(math.pi / 2 * torch.rand(batch, 1, generator=generator))
        num_masked_B1 = (ratio_B1 * length).long().clamp(min=1)
        rank_BL = torch.rand(batch, length, generator=generator).argsort(dim=1).argsort(dim=1)
        dropped = (torch.rand(batch, generator=generator) < PROMPT_DROP).tolist()
        kept = [null_ids if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
        # The loss does not depend on the order; prompts of one length side by side share a call of attention.
        order = sorted(range(batch), key=lambda row: len(kept[row]))
        condition = PromptCondition.of([kept[row] for row in order], null_ids, codes_BL.device)
        masked_BL = (rank_BL < num_masked_B1)[order]
        return cls(condition, codes_BL[order], masked_BL.to(codes_BL.device))


class BackboneTrainer(nn.Module):
    """The backbone with its loss as `forward`, so that data-parallel wrapping sees one call per step."""

    def __init__(self, backbone: Backbone, layout: Layout) -> None:
        super().__init__()
        self.backbone = backbone
        self.layout = layout

    def forward(self, batch: MaskedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy over masked codes; `accuracy` on them."""
        condition, words = batch.condition, self.layout.vocabulary
        ids_BT = self.layout.sequence(condition.prompts_XP, batch.codes_BL, batch.masked_BL)
        places_BT = condition.places(ids_BT.shape[1])
        features_BTD = self.backbone(ids_BT, places_BT, condition.padding)
        positions_BL = torch.arange(batch.codes_BL.shape[1], device=ids_BT.device).expand_as(batch.codes_BL)
        columns_BL = self.layout.columns(positions_BL, ids_BT.shape[1])
        index_BLD = columns_BL[..., None].expand(-1, -1, features_BTD.shape[-1])
        logits_BLV = self.backbone.logits(
            features_BTD.gather(1, index_BLD), words.first_code, words.codebook_size
        ).float()
        error_BL = F.cross_entropy(logits_BLV.transpose(1, 2), batch.codes_BL, reduction="none")
        num_masked = batch.masked_BL.sum()
        loss = (error_BL * batch.masked_BL).sum() / num_masked
        right_BL = (logits_BLV.detach().argmax(-1) == batch.codes_BL) & batch.masked_BL
        return loss, {"accuracy": right_BL.sum() / num_masked}
