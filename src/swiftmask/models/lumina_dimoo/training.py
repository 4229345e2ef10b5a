"""Training Lumina-DiMOO on any tokenized images with captions: predict the codes that were masked (arXiv
2510.06308, section 3.3).

As upstream, each image draws u ~ U(0, 1) and masks the share cos(pi u / 2) of its codes, at least one;
text, newlines and brackets are never masked; a tenth of the prompts give way to the null prompt; the loss is
the mean over all masked codes of the batch. Unlike upstream the logits cover image codes only, and shorter
prompts are padded for real: upstream's padding is attended to.

`initialise` is for small backbones trained for two hours instead of months. Blocks start as upstream's
("mitchell": unit gain, less in deeper blocks); codes that look alike start alike, where they are read and
where they are predicted; and embeddings are as large as what blocks add to them, so that no token is
forgotten on the way. What it saves has not been measured.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.embeddings import codes_like_latents
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.trainable import NoSettings, Subject, Trainable, require_same
from swiftmask.models.lumina_dimoo.generator import LuminaDiMOO
from swiftmask.models.lumina_dimoo.layout import Layout, PromptCondition, Vocabulary
from swiftmask.models.lumina_dimoo.network import Backbone, BackboneConfig
from swiftmask.models.lumina_dimoo.prompts import Prompts, WordPrompts
from swiftmask.models.lumina_dimoo.weights import RELEASED

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


_HEAD_DEVIATION = 0.02
"""Of the head's rows: first predictions are nearly uniform."""


@torch.no_grad()
def initialise(backbone: Backbone, codebook_VC: Tensor, *, first_code: int) -> Backbone:
    """Embeddings of deviation one, and codes that resemble their latents; in place.

    Args:
        codebook_VC: the codec's codebook, in the order of the codes.
        first_code: id of code 0.
    """
    transformer = backbone.model.transformer
    rows_VD = codes_like_latents(codebook_VC, backbone.config.width)
    codes = slice(first_code, first_code + len(rows_VD))
    nn.init.normal_(transformer.wte.weight)
    nn.init.normal_(transformer.ff_out.weight, std=_HEAD_DEVIATION)
    transformer.wte.weight[codes] = rows_VD
    transformer.ff_out.weight[codes] = _HEAD_DEVIATION * rows_VD
    return backbone


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the backbone; None takes those of `size`.

    Attributes:
        rope_theta: base of the rotary frequencies. Short sequences need quick rotations: with 1000 the
            slowest takes a few sequences of 8x8 codes to turn, with the released 500,000 thousands.
    """

    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_width: int | None = None
    rope_theta: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)


class DiMOOTask:
    """A backbone over captions and the codes of a frozen codec.

    Args:
        backbone: trained in place.

    Errors: ValueError naming the first caption that the prompts cannot express.
    """

    def __init__(
        self, backbone: Backbone, prompts: Prompts, vocabulary: Vocabulary, subject: Subject
    ) -> None:
        for text in subject.captions:
            prompts.ids(text)
        self._layout = Layout(vocabulary, (subject.grid, subject.grid))
        self.trainer = BackboneTrainer(backbone, self._layout)
        self._prompts, self._codec = prompts, subject.codec

    def batch(self, rows: Tensor, what: Tensor | Sequence[str], generator: torch.Generator) -> MaskedBatch:
        """Masked codes of images with their captions."""
        prompts = [self._prompts.ids(str(text)) for text in what]
        return MaskedBatch.draw(rows.flatten(1).long(), prompts, self._prompts.null_ids, generator)

    def model(self, trainer: nn.Module, sampling: SamplingOptions, steps: int) -> LuminaDiMOO:
        """The backbone with the codec that it was trained on."""
        assert isinstance(trainer, BackboneTrainer)
        return LuminaDiMOO(
            trainer.backbone,
            self._codec,
            self._prompts,
            vocabulary=self._layout.vocabulary,
            grid=self._layout.grid,
            sampling=sampling,
            steps=steps,
        )


def fresh(sizes: Sizes, subject: Subject, objective: NoSettings) -> DiMOOTask:
    """A backbone for the words of the captions, whose codes start like their latents."""
    prompts, codebook_VC = WordPrompts.of(subject.captions), subject.codec.codebook_VC
    vocabulary = Vocabulary.after(prompts.num_ids, codebook_size=len(codebook_VC))
    config = BackboneConfig(**asdict(sizes), vocabulary_size=vocabulary.size)
    backbone = initialise(Backbone(config), codebook_VC, first_code=vocabulary.first_code)
    return DiMOOTask(backbone, prompts, vocabulary, subject)


def resumed(model: LuminaDiMOO, subject: Subject, objective: NoSettings) -> DiMOOTask:
    """From a model of the same codec sizes whose prompts can express the captions."""
    vocabulary = model.layout.vocabulary
    require_same("codes", vocabulary.codebook_size, len(subject.codec.codebook_VC))
    return DiMOOTask(model.backbone.requires_grad_(), model.prompts, vocabulary, subject)


def _sizes(width: int, depth: int, num_heads: int, mlp_width: int, rope_theta: float) -> Sizes:
    return Sizes(width=width, depth=depth, num_heads=num_heads, mlp_width=mlp_width, rope_theta=rope_theta)


TRAINABLE = Trainable(
    draws="prompt",
    tokenizers=("vq",),
    sizes={
        "tiny": _sizes(64, 2, 2, 128, 1000.0),
        "small": _sizes(192, 5, 6, 512, 1000.0),
        "base": _sizes(768, 12, 12, 2048, 10_000.0),
        "released": _sizes(
            RELEASED.width, RELEASED.depth, RELEASED.num_heads, RELEASED.mlp_width, RELEASED.rope_theta
        ),
    },
    unset=Sizes(),
    objective=NoSettings(),
    sampling=SamplingOptions(guidance=1.5, temperature=0.7, choice_temperature=0.5),
    fresh=fresh,
    resumed=resumed,
)
