"""Training Lumina-DiMOO on any tokenized images with captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.trainable import Subject, Trainable, require_same
from swiftmask.models.lumina_dimoo.generator import LuminaDiMOO
from swiftmask.models.lumina_dimoo.initialisation import initialise
from swiftmask.models.lumina_dimoo.layout import Layout, Vocabulary
from swiftmask.models.lumina_dimoo.network import Backbone, BackboneConfig
from swiftmask.models.lumina_dimoo.objective import BackboneTrainer, MaskedBatch
from swiftmask.models.lumina_dimoo.prompts import Prompts, WordPrompts
from swiftmask.models.lumina_dimoo.weights import RELEASED


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Lumina-DiMOO's loss has no settings."""


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


def fresh(sizes: Sizes, subject: Subject, objective: Objective) -> DiMOOTask:
    """A backbone for the words of the captions, whose codes start like their latents."""
    assert sizes.width and sizes.depth and sizes.num_heads and sizes.mlp_width and sizes.rope_theta
    prompts, codebook_VC = WordPrompts.of(subject.captions), subject.codec.codebook_VC
    vocabulary = Vocabulary.after(prompts.num_ids, codebook_size=len(codebook_VC))
    config = BackboneConfig(
        width=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.num_heads,
        mlp_width=sizes.mlp_width,
        vocabulary_size=vocabulary.size,
        rope_theta=sizes.rope_theta,
    )
    backbone = initialise(Backbone(config), codebook_VC, first_code=vocabulary.first_code)
    return DiMOOTask(backbone, prompts, vocabulary, subject)


def resumed(model: LuminaDiMOO, subject: Subject, objective: Objective) -> DiMOOTask:
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
    objective=Objective(),
    sampling=SamplingOptions(guidance=1.5, temperature=0.7, choice_temperature=0.5),
    fresh=fresh,
    resumed=resumed,
)
