"""Meissonic's training objective: predict the codes that were masked (Bai et al., arXiv 2410.08261).

Each picture draws u ~ U(0, 1) and masks a share cos(pi u / 2) of its tokens, anywhere, at least one. Two
things differ from the released training script. It feeds 1000 times the masked share as time, while the
sampler feeds the number of steps left; here training feeds what sampling will, of a decode of 1 to
`max_steps` steps that stands where u says. And its dropping of captions for guidance has no effect; here a
tenth of them become the empty prompt.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.models.meissonic.network import Transformer
from swiftmask.models.meissonic.rotary import places_of, rotary_at
from swiftmask.models.meissonic.text import TextEmbedding, TextEncoder

CAPTION_DROP = 0.1


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """A batch of masked pictures with their captions.

    Attributes:
        ids_BHW: input ids, the mask id where masked.
        codes_BHW: target codes.
        masked_BHW: which were masked.
        captions_BT: ids of the captions, padded.
        timesteps_B: decode steps left after this one, float32.
        micro_B5: micro-conditions (`Prompt.micro`).
    """

    ids_BHW: Tensor
    codes_BHW: Tensor
    masked_BHW: Tensor
    captions_BT: Tensor
    timesteps_B: Tensor
    micro_B5: Tensor

    @classmethod
    def draw(
        cls,
        codes_BHW: Tensor,
        captions_BT: Tensor,
        micro_B5: Tensor,
        generator: torch.Generator,
        *,
        mask_id: int,
        null_T: Tensor,
        max_steps: int = 48,
    ) -> Self:
        """Mask codes, drop captions and place each picture in a decode, with `generator` (on the CPU).

        Args:
            null_T: ids of the empty prompt.
            max_steps: of the longest decode the model is to know.
        """
        batch = len(codes_BHW)
        moment_B = torch.rand(batch, generator=generator)
        num_steps_B = torch.randint(1, max_steps + 1, (batch,), generator=generator)
        masked_BL = _masked(moment_B, codes_BHW.flatten(1).shape[1], generator)
        masked_BHW = masked_BL.view(codes_BHW.shape)
        dropped_B1 = torch.rand(batch, 1, generator=generator) < CAPTION_DROP
        return cls(
            codes_BHW.masked_fill(masked_BHW, mask_id),
            codes_BHW,
            masked_BHW,
            torch.where(dropped_B1, null_T, captions_BT),
            steps_left_at(moment_B, num_steps_B),
            micro_B5,
        )


def steps_left_at(moment_B: Tensor, num_steps_B: Tensor) -> Tensor:
    """Steps left after the one a decode of N steps is in at moment u in [0, 1): before step i the cosine
    schedule has masked cos(pi i / 2N), so u lies in step floor(u N). Float32 [B].
    """
    step_B = (moment_B * num_steps_B).floor().clamp(max=num_steps_B - 1)
    return (num_steps_B - 1 - step_B).float()


class TransformerTrainer(nn.Module):
    """The transformer and its text encoder with the loss as `forward`, so that data-parallel wrapping sees
    one call per step. A text encoder that is not to learn has `requires_grad_(False)`.
    """

    def __init__(self, transformer: Transformer, text_encoder: TextEncoder) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    def forward(self, batch: MaskedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy over masked positions, and how many of them are right."""
        transformer, stride = self.transformer, self.transformer.config.stride
        rows, columns = batch.ids_BHW.shape[1:]
        text: TextEmbedding = self.text_encoder(batch.captions_BT)
        places_T3 = places_of((rows // stride, columns // stride), batch.captions_BT.shape[1])
        features_BLD = transformer(
            batch.ids_BHW,
            transformer.condition(*text, batch.micro_B5),
            batch.timesteps_B,
            rotary_at(places_T3, transformer.config.rotary_axes, batch.ids_BHW.device),
        )
        logits_MK = transformer.logits(features_BLD[batch.masked_BHW.flatten(1)])
        codes_M = batch.codes_BHW[batch.masked_BHW]
        loss = F.cross_entropy(logits_MK, codes_M)
        accuracy = (logits_MK.detach().argmax(-1) == codes_M).float().mean()
        return loss, {"masked_loss": loss, "accuracy": accuracy}


def _masked(moment_B: Tensor, num_tokens: int, generator: torch.Generator) -> Tensor:
    """Exactly round(L cos(pi u / 2)) places of each picture, at least one: bool [B, L]."""
    count_B1 = (num_tokens * (moment_B * math.pi / 2).cos()).round().clamp(min=1)[:, None]
    ranks_BL = torch.rand(len(moment_B), num_tokens, generator=generator).argsort(dim=1).argsort(dim=1)
    return ranks_BL < count_B1
