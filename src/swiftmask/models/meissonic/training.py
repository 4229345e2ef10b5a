"""Training Meissonic on any tokenized images with captions: predict the codes that were masked (Bai et al.,
arXiv 2410.08261).

Each image draws u ~ U(0, 1) and masks a share cos(pi u / 2) of its tokens, anywhere, at least one. Two
things differ from the released training script. It feeds 1000 times the masked share as time, while the
sampler feeds the number of steps left; here training feeds what sampling will, of a decode of 1 to
`max_steps` steps that stands where u says. And its dropping of captions for guidance has no effect; here a
tenth of them become the empty prompt.

The text encoder is a fresh one with the words of the captions for a vocabulary, trained together with the
transformer by the same loss: pairing texts with images first (as CLIP) would need an image encoder that
nothing else uses. Where the objective names a CLIP text encoder, that one is used, frozen.

`initialise` is for small transformers trained for an hour instead of a week. Blocks compute from the first
step on, without time and prompt turning them up and down at random; codes that look alike start alike, where
they are read and where they are predicted; linear layers have unit gain. What it saves has not been measured.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.embeddings import codes_like_latents
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.trainable import Subject, Trainable, require_same
from swiftmask.models.meissonic.generator import Meissonic
from swiftmask.models.meissonic.network import Transformer, TransformerConfig
from swiftmask.models.meissonic.prompts import Prompt
from swiftmask.models.meissonic.rotary import places_of, rotary_at
from swiftmask.models.meissonic.text import (
    TextConfig,
    TextEmbedding,
    TextEncoder,
    build_text_encoder,
    words_of,
)
from swiftmask.models.meissonic.weights import RELEASED, read_text_encoder

CAPTION_DROP = 0.1


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """A batch of masked images with their captions.

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
        """Mask codes, drop captions and place each image in a decode, with `generator` (on the CPU).

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
    """Exactly round(L cos(pi u / 2)) places of each image, at least one: bool [B, L]."""
    count_B1 = (num_tokens * (moment_B * math.pi / 2).cos()).round().clamp(min=1)[:, None]
    ranks_BL = torch.rand(len(moment_B), num_tokens, generator=generator).argsort(dim=1).argsort(dim=1)
    return ranks_BL < count_B1


_MODULATION = re.compile(r".*\.norm\w*\.linear\.(weight|bias)")
"""Parameters that turn time and prompt into shifts, scales and gates, in this order (network.py)."""

_EMBEDDING = "embed.embeddings.weight"

_HEAD_DEVIATION = 0.02
"""Of the head's rows: first predictions are nearly uniform."""


@torch.no_grad()
def initialise(transformer: Transformer, codebook_VC: Tensor) -> Transformer:
    """Open blocks, codes that resemble their latents, and weights of unit gain; in place.

    Every block starts as that of a plain transformer: no shift, no scale, gates of one. Gates of zero, as in
    DiT (Peebles & Xie, arXiv 2212.09748, section 3.2), would first have to open.

    Args:
        codebook_VC: the codec's codebook, in the order of the codes.
    """
    for name, parameter in transformer.named_parameters():
        if _MODULATION.fullmatch(name):
            parameter.zero_()
            if parameter.ndim == 1:
                parameter.unflatten(0, (-1, transformer.config.width))[2::3] = 1.0
        elif parameter.ndim == 2 and name != _EMBEDDING:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    rows_VD = codes_like_latents(codebook_VC, transformer.config.width)
    transformer.embed.embeddings.weight[: len(rows_VD)] = rows_VD
    transformer.mlm_layer.conv2.weight.copy_(_HEAD_DEVIATION * rows_VD[:, :, None, None])
    return transformer


@torch.no_grad()
def ignore_micro_conditions(transformer: Transformer) -> Transformer:
    """Take the micro-conditions out, for images that all have the same ones; in place.

    As inputs that never change, their 1,280 sinusoids are one bias that learns hundreds of times as fast as
    any other: it ran away and shut the SiLU in front of every block's shifts, scales and gates for good.
    What mixes them with the pooled prompt reads the prompt alone, and stays as it starts.
    """
    mixing, width = transformer.cond_embed.linear_1, transformer.config.width
    nn.init.normal_(mixing.weight[:, :width], std=width**-0.5)
    mixing.weight[:, width:] = 0.0
    mixing.requires_grad_(False)
    return transformer


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
