"""Training MaskGIT on any tokenized images with classes: predict the codes that were masked (Chang et al.,
arXiv 2202.04200, section 3.1).

As in valeoai v1.0, each image draws r ~ U(0, 1) and masks every token with probability arccos(r) /
(pi/2), a tenth of the labels are dropped for guidance, and positions that were not masked are predicted too
(the shortcut reads their features), here with a small weight. Left out: label smoothing, which a small model
reads as noise in its samples.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.embeddings import attribute_rows, attribute_sizes, other_attributes, other_classes
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.trainable import Subject, Trainable, require_same
from swiftmask.models.maskgit.generator import MaskGIT
from swiftmask.models.maskgit.initialisation import initialise
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
        cls,
        codes_BL: Tensor,
        labels_B: Tensor,
        config: TransformerConfig,
        generator: torch.Generator,
        *,
        least: float = 0.0,
    ) -> Self:
        """Mask codes and drop labels with `generator` (on the CPU).

        Args:
            least: the smallest share of an image that is masked; shares below it are stretched above it.
        """
        share_B1 = torch.rand(len(codes_BL), 1, generator=generator).arccos() / (math.pi / 2)
        ratio_B1 = least + (1 - least) * share_B1
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


@torch.no_grad()
def with_classes(transformer: Transformer, attributes_NA: Tensor) -> Transformer:
    """A copy for other classes, whose embeddings are new; that of the null class is kept."""
    config, state = transformer.config, transformer.state_dict()
    first, bias_TV, tokens_VD = config.first_class_id, state["bias"], state["tok_emb.weight"]
    ids_1N = first + torch.arange(config.num_classes)[None]
    own_ND = transformer.class_vectors(ids_1N.to(bias_TV.device))[0]
    config = replace(config, num_classes=len(attributes_NA))
    if config.class_attributes:
        config = replace(config, class_attributes=attribute_sizes(attributes_NA))
        classes_SD = other_attributes(own_ND, config.class_attributes)
        state["class_rows"] = attribute_rows(attributes_NA)
    else:
        classes_SD = other_classes(own_ND, attributes_NA)
        unread_TN = bias_TV.new_zeros(len(bias_TV), len(classes_SD))
        state["bias"] = torch.cat([bias_TV[:, :first], unread_TN, bias_TV[:, -1:]], dim=1)
    state["tok_emb.weight"] = torch.cat([tokens_VD[:first], classes_SD, tokens_VD[-1:]])
    changed = Transformer(config)
    changed.load_state_dict(state)
    return changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the transformer; None takes those of `size`.

    Attributes:
        composed_classes: whether a class is the sum of a vector for each of its attributes, such as its
            concept and its style, so that a pair which no image shows can be asked for.
    """

    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_width: int | None = None
    dropout: float | None = None
    composed_classes: bool | None = None

    def __post_init__(self) -> None:
        check_fields(self)


_HIGH = 0.7
"""Least share of masked tokens of `mask_rates="high"`: that of MAR's training (arXiv 2406.11838)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Settings of the loss.

    Attributes:
        mask_rates: "all" draws a share of any size for each image, "high" one of at least 70 %. With few
            codes to see, the class has to be read: train "high" first where classes are many.
    """

    mask_rates: Literal["all", "high"] = "all"

    def __post_init__(self) -> None:
        check_fields(self)


class MaskGITTask:
    """A transformer over the codes of a frozen codec.

    Args:
        transformer: trained in place.
    """

    def __init__(self, transformer: Transformer, subject: Subject, objective: Objective) -> None:
        self.trainer = TransformerTrainer(transformer)
        self._subject = subject
        self._least = _HIGH if objective.mask_rates == "high" else 0.0

    def batch(self, rows: Tensor, what: Tensor | Sequence[str], generator: torch.Generator) -> MaskedBatch:
        """Masked codes of images with their labels."""
        assert isinstance(what, Tensor)
        config = self.trainer.transformer.config
        return MaskedBatch.draw(rows.flatten(1).long(), what, config, generator, least=self._least)

    def model(self, trainer: nn.Module, sampling: SamplingOptions, steps: int) -> MaskGIT:
        """The transformer with the codec that it was trained on."""
        assert isinstance(trainer, TransformerTrainer)
        subject = self._subject
        names = subject.class_names
        return MaskGIT(trainer.transformer, subject.codec, sampling=sampling, steps=steps, class_names=names)


def fresh(sizes: Sizes, subject: Subject, objective: Objective) -> MaskGITTask:
    """A transformer whose codes start like their latents, and its classes like what they have in common."""
    assert subject.attributes_NA is not None
    given = asdict(sizes)
    composed = given.pop("composed_classes")
    config = TransformerConfig(
        **given,
        class_attributes=attribute_sizes(subject.attributes_NA) if composed else (),
        codebook_size=len(subject.codec.codebook_VC),
        num_classes=len(subject.class_names),
        grid=subject.grid,
    )
    codebook_VC = subject.codec.codebook_VC
    transformer = initialise(Transformer(config), codebook_VC, subject.attributes_NA, subject.trained)
    return MaskGITTask(transformer, subject, objective)


def resumed(model: MaskGIT, subject: Subject, objective: Objective) -> MaskGITTask:
    """From a model of the same codec sizes; classes that are not its own get new embeddings."""
    config, transformer = model.transformer.config, model.transformer
    require_same("codes", config.codebook_size, len(subject.codec.codebook_VC))
    require_same("a grid of", config.grid, subject.grid)
    if not subject.has_classes(config.num_classes, model.class_names):
        assert subject.attributes_NA is not None
        transformer = with_classes(transformer, subject.attributes_NA)
    return MaskGITTask(transformer.requires_grad_(), subject, objective)


def _sizes(width: int, depth: int, num_heads: int) -> Sizes:
    return Sizes(
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_width=4 * width,
        dropout=0.0,
        composed_classes=False,
    )


TRAINABLE = Trainable(
    draws="class",
    tokenizers=("vq", "vqgan"),
    sizes={
        "tiny": _sizes(64, 2, 2),
        "small": _sizes(160, 8, 5),
        "base": _sizes(512, 12, 8),
        "released": _sizes(768, 24, 16),
    },
    unset=Sizes(),
    objective=Objective(),
    sampling=SamplingOptions(guidance=2.0, temperature=1.0, choice_temperature=10.0),
    fresh=fresh,
    resumed=resumed,
)
