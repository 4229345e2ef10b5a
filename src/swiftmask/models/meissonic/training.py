"""Training Meissonic on any tokenized images with captions.

The text encoder is a fresh one with the words of the captions for a vocabulary, trained together with the
transformer by the same loss: pairing texts with images first (as CLIP) would need an image encoder that
nothing else uses. Where the objective names a CLIP text encoder, that one is used, frozen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.trainable import Subject, Trainable, require_same
from swiftmask.models.meissonic.generator import Meissonic
from swiftmask.models.meissonic.initialisation import ignore_micro_conditions, initialise
from swiftmask.models.meissonic.network import Transformer, TransformerConfig
from swiftmask.models.meissonic.objective import MaskedBatch, TransformerTrainer
from swiftmask.models.meissonic.prompts import Prompt
from swiftmask.models.meissonic.text import TextConfig, TextEncoder, build_text_encoder, words_of
from swiftmask.models.meissonic.weights import RELEASED, read_text_encoder

_END = 0
"""Of a tokenizer of words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the transformer and of a fresh text encoder; None takes those of `size`.

    Attributes:
        head_width: a multiple of 32. An eighth turns with the place in the text, the rest with row and
            column.
        downsample: whether the blocks run on a grid of half the side.
        text_width, text_depth, text_heads: of a fresh text encoder.
    """

    num_heads: int | None = None
    head_width: int | None = None
    num_double_blocks: int | None = None
    num_single_blocks: int | None = None
    downsample: bool | None = None
    text_width: int | None = None
    text_depth: int | None = None
    text_heads: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.head_width is not None and self.head_width % 32:
            raise ValueError(f"head_width must be a multiple of 32, got {self.head_width}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Settings of the loss, and what captions are read with.

    Attributes:
        max_steps: of the longest decode that the model is to know.
        text_encoder: folder of a CLIP text encoder with its tokenizer, frozen in training; None trains a
            fresh one of the captions' words. The transformer's width must be its projection's.
        truncate: whether captions that are too long for it are cut; otherwise they are refused.
    """

    max_steps: int = 32
    text_encoder: Path | None = None
    truncate: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


class MeissonicTask:
    """A transformer over the codes of a frozen codec, and its text encoder.

    Args:
        transformer: trained in place. All images have one size, so micro-conditions are left as they are.
        text_encoder: trained in place if it has a vocabulary of words and the objective names no other; else
            frozen.

    Errors: ValueError if sizes do not fit.
    """

    def __init__(
        self, transformer: Transformer, text_encoder: TextEncoder, subject: Subject, objective: Objective
    ) -> None:
        self._words, self._objective = text_encoder.tokenizer, objective
        self._codec, self._size = subject.codec, (subject.resolution, subject.resolution)
        transformer.cond_embed.linear_1.requires_grad_(False)
        text_encoder.requires_grad_(self._words.has_words and objective.text_encoder is None)
        self.trainer = TransformerTrainer(transformer, text_encoder)
        self._micro_5 = torch.tensor(Prompt("any image").micro(self._size))
        self._null_T = self._words([""])[0]
        self.model(self.trainer, SamplingOptions(), 1)  # refuses what does not fit

    def batch(self, rows: Tensor, what: Tensor | Sequence[str], generator: torch.Generator) -> MaskedBatch:
        """Masked codes of images with their captions."""
        texts = [str(text) for text in what]
        if self._objective.truncate:
            texts = [self._words.truncated(text) for text in texts]
        return MaskedBatch.draw(
            rows.long(),
            self._words(texts),
            self._micro_5.expand(len(rows), -1),
            generator,
            mask_id=self.trainer.transformer.config.mask_id,
            null_T=self._null_T,
            max_steps=self._objective.max_steps,
        )

    def model(self, trainer: nn.Module, sampling: SamplingOptions, steps: int) -> Meissonic:
        """Transformer and text encoder with the codec that they were trained on."""
        assert isinstance(trainer, TransformerTrainer)
        return Meissonic(
            trainer.transformer,
            trainer.text_encoder,
            self._codec,
            size=self._size,
            sampling=sampling,
            steps=steps,
        )


def fresh(sizes: Sizes, subject: Subject, objective: Objective) -> MeissonicTask:
    """A transformer whose codes start like their latents, and a text encoder."""
    assert sizes.num_heads and sizes.head_width and sizes.num_double_blocks and sizes.num_single_blocks
    width, codebook_VC = sizes.num_heads * sizes.head_width, subject.codec.codebook_VC
    text_encoder = (
        _fresh_text_encoder(sizes, subject, width)
        if objective.text_encoder is None
        else read_text_encoder(objective.text_encoder.expanduser())
    )
    if objective.text_encoder is not None:
        text_encoder.tokenizer.check(subject.captions, truncate=objective.truncate)
    text = text_encoder.config
    if text.projection_dim != width:
        raise ValueError(
            f"the text encoder projects to {text.projection_dim} channels, the transformer has {width} "
            "(network.num_heads x network.head_width): they must be equal"
        )
    config = TransformerConfig(
        num_heads=sizes.num_heads,
        head_width=sizes.head_width,
        num_double_blocks=sizes.num_double_blocks,
        num_single_blocks=sizes.num_single_blocks,
        text_width=text.hidden_size,
        codebook_size=len(codebook_VC),
        vocabulary_size=len(codebook_VC) + 1,
        rotary_axes=(sizes.head_width // 8, *2 * (sizes.head_width * 7 // 16,)),
        downsample=bool(sizes.downsample),
    )
    transformer = ignore_micro_conditions(initialise(Transformer(config), codebook_VC))
    return MeissonicTask(transformer, text_encoder, subject, objective)


def resumed(model: Meissonic, subject: Subject, objective: Objective) -> MeissonicTask:
    """From a model of the same codec sizes whose text encoder (or that of the objective) can read the
    captions; images may have another size.
    """
    require_same("codes", model.transformer.config.codebook_size, len(subject.codec.codebook_VC))
    named = objective.text_encoder
    text_encoder = model.text_encoder if named is None else read_text_encoder(named.expanduser())
    text_encoder.tokenizer.check(subject.captions, truncate=objective.truncate)
    return MeissonicTask(model.transformer.requires_grad_(), text_encoder, subject, objective)


def _fresh_text_encoder(sizes: Sizes, subject: Subject, width: int) -> TextEncoder:
    assert sizes.text_width and sizes.text_depth and sizes.text_heads
    words = words_of(subject.captions)
    config = TextConfig(
        vocab_size=words.num_ids,
        hidden_size=sizes.text_width,
        intermediate_size=4 * sizes.text_width,
        projection_dim=width,
        num_hidden_layers=sizes.text_depth,
        num_attention_heads=sizes.text_heads,
        max_position_embeddings=words.length,
        eos_token_id=_END,
    )
    return build_text_encoder(config, words)


def _sizes(num_heads: int, head_width: int, blocks: tuple[int, int], text: tuple[int, int, int]) -> Sizes:
    return Sizes(
        num_heads=num_heads,
        head_width=head_width,
        num_double_blocks=blocks[0],
        num_single_blocks=blocks[1],
        downsample=True,
        text_width=text[0],
        text_depth=text[1],
        text_heads=text[2],
    )


_PUBLISHED = RELEASED["meissonic-1024"]

TRAINABLE = Trainable(
    draws="prompt",
    tokenizers=("vq",),
    sizes={
        "tiny": _sizes(2, 32, (1, 1), (32, 2, 2)),
        "small": _sizes(4, 32, (2, 4), (64, 3, 2)),
        "base": _sizes(8, 64, (6, 12), (512, 6, 8)),
        "released": _sizes(
            _PUBLISHED.num_heads,
            _PUBLISHED.head_width,
            (_PUBLISHED.num_double_blocks, _PUBLISHED.num_single_blocks),
            (_PUBLISHED.text_width, 24, 16),
        ),
    },
    unset=Sizes(),
    objective=Objective(),
    sampling=SamplingOptions(guidance=1.5, temperature=0.9, choice_temperature=0.5),
    fresh=fresh,
    resumed=resumed,
)
