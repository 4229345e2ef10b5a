"""Training MaskGIT on any tokenized images with classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.trainable import Subject, Trainable, require_same
from swiftmask.models.maskgit.generator import MaskGIT
from swiftmask.models.maskgit.initialisation import initialise, with_classes
from swiftmask.models.maskgit.network import Transformer, TransformerConfig
from swiftmask.models.maskgit.objective import MaskedBatch, TransformerTrainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the transformer; None takes those of `size`."""

    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_width: int | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """MaskGIT's loss has no settings."""


class MaskGITTask:
    """A transformer over the codes of a frozen codec.

    Args:
        transformer: trained in place.
    """

    def __init__(self, transformer: Transformer, subject: Subject) -> None:
        self.trainer = TransformerTrainer(transformer)
        self._subject = subject

    def batch(self, rows: Tensor, what: Tensor | Sequence[str], generator: torch.Generator) -> MaskedBatch:
        """Masked codes of images with their labels."""
        assert isinstance(what, Tensor)
        config = self.trainer.transformer.config
        return MaskedBatch.draw(rows.flatten(1).long(), what, config, generator)

    def model(self, trainer: nn.Module, sampling: SamplingOptions, steps: int) -> MaskGIT:
        """The transformer with the codec that it was trained on."""
        assert isinstance(trainer, TransformerTrainer)
        subject = self._subject
        names = subject.class_names
        return MaskGIT(trainer.transformer, subject.codec, sampling=sampling, steps=steps, class_names=names)


def fresh(sizes: Sizes, subject: Subject, objective: Objective) -> MaskGITTask:
    """A transformer whose codes start like their latents, and its classes like what they have in common."""
    assert sizes.width and sizes.depth and sizes.num_heads and sizes.mlp_width
    assert subject.attributes_NA is not None
    config = TransformerConfig(
        width=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.num_heads,
        mlp_width=sizes.mlp_width,
        dropout=sizes.dropout or 0.0,
        codebook_size=len(subject.codec.codebook_VC),
        num_classes=len(subject.class_names),
        grid=subject.grid,
    )
    transformer = initialise(Transformer(config), subject.codec.codebook_VC, subject.attributes_NA)
    return MaskGITTask(transformer, subject)


def resumed(model: MaskGIT, subject: Subject, objective: Objective) -> MaskGITTask:
    """From a model of the same codec sizes; classes that are not its own get new embeddings."""
    config, transformer = model.transformer.config, model.transformer
    require_same("codes", config.codebook_size, len(subject.codec.codebook_VC))
    require_same("a grid of", config.grid, subject.grid)
    if not subject.has_classes(config.num_classes, model.class_names):
        assert subject.attributes_NA is not None
        transformer = with_classes(transformer, subject.attributes_NA)
    return MaskGITTask(transformer.requires_grad_(), subject)


def _sizes(width: int, depth: int, num_heads: int) -> Sizes:
    return Sizes(width=width, depth=depth, num_heads=num_heads, mlp_width=4 * width, dropout=0.0)


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
