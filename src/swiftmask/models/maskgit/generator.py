"""MaskGIT behind the contract of a base model (core/protocol.py).

Sampler facts are valeoai v1.0's: arccos increments, guidance rising from off, Gumbel-noised confidence. The
head is the tied token embedding, so guidance mixes features first and the logits cover image codes at
masked positions only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from swiftmask.core.classes import class_number
from swiftmask.core.compiled import RepeatedBlocks
from swiftmask.core.files import write_model
from swiftmask.core.portions import in_portions
from swiftmask.core.protocol import Noise, SamplingOptions, Spec, UnmaskRule
from swiftmask.core.schedule import valeo_schedule
from swiftmask.core.tokens import CategoricalTokens, guided_rows
from swiftmask.core.types import Canvas, Step
from swiftmask.core.unmask import by_confidence
from swiftmask.core.vq_codec import VQCodec
from swiftmask.models.maskgit.codec import VQGAN
from swiftmask.models.maskgit.network import Transformer
from swiftmask.models.maskgit.weights import Settings, network_of, read_model, read_released

RELEASED_SAMPLING = SamplingOptions(guidance=3.8, temperature=1.0, choice_temperature=7.0)
"""Defaults of the released 512 px model: `w = 2.8` (guidance = 1 + w), `sm_temp = 1`, `r_temp = 7`."""

RELEASED_SAMPLING_256 = SamplingOptions(guidance=4.0, temperature=1.0, choice_temperature=4.5)
"""Defaults of the released 256 px model (16x16 tokens): `w = 3`, `sm_temp = 1`, `r_temp = 4.5`."""

RELEASED_STEPS, RELEASED_STEPS_256 = 15, 8
"""Decode steps of the two, as released."""


@dataclass(frozen=True, slots=True)
class ClassCondition:
    """Class tokens, one row per image and branch: conditional rows first, then null rows.

    Attributes:
        ids_X1: int64 [num_branches * B, 1].
    """

    ids_X1: Tensor
    num_branches: int

    def __len__(self) -> int:
        return self.ids_X1.shape[0] // self.num_branches


class MaskGIT(nn.Module):
    """A class-conditional masked generator: transformer over codes, VQ codec.

    Args:
        codec: the released VQGAN, or one that `train tokenizer` made.
        sampling: defaults of the schedule.
        steps: default number of decode steps.
        class_names: one name per class; labels may then be given by name.
    """

    def __init__(
        self,
        transformer: Transformer,
        codec: VQGAN | VQCodec,
        *,
        sampling: SamplingOptions = RELEASED_SAMPLING,
        steps: int = RELEASED_STEPS,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.codec = codec
        self.sampling = sampling
        self.steps = steps
        self.class_names = tuple(class_names)
        self.eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """From a model folder: float32, on the CPU. Errors name the missing or foreign file, key or shape."""
        transformer, codec, settings = read_model(folder)
        return cls(
            transformer,
            codec,
            sampling=settings.sampling or RELEASED_SAMPLING,
            steps=settings.steps or RELEASED_STEPS,
            class_names=settings.class_names,
        )

    @classmethod
    def from_released(
        cls,
        transformer_path: str | Path,
        codec_path: str | Path,
        *,
        num_heads: int = 16,
        codebook_size: int = 1024,
        resolution: int = 256,
    ) -> Self:
        """From valeoai's `MaskGIT_ImageNet_*.pth` and the VQGAN's `last.ckpt`.

        Sizes are inferred from the tensors but for the ones given here, which leave no trace there. The grid
        says which released model it is, and with that the steps and the sampling defaults.
        """
        transformer, codec = read_released(
            transformer_path,
            codec_path,
            num_heads=num_heads,
            codebook_size=codebook_size,
            resolution=resolution,
        )
        if transformer.config.grid == 16:
            return cls(transformer, codec, sampling=RELEASED_SAMPLING_256, steps=RELEASED_STEPS_256)
        return cls(transformer, codec)

    def save_pretrained(
        self, folder: str | Path, *, provenance: Mapping[str, object], dtype: torch.dtype = torch.float32
    ) -> None:
        """Write the folder `from_pretrained` reads, each file whole or not at all."""
        settings = Settings(
            model="maskgit",
            transformer=self.transformer.config,
            codec=self.codec.config,
            sampling=self.sampling,
            steps=self.steps,
            class_names=self.class_names,
        )
        parts = {"transformer": self.transformer, "codec": network_of(self.codec)}
        write_model(folder, settings, parts, provenance=provenance, dtype=dtype)

    @property
    def spec(self) -> Spec:
        sizes = self.transformer.config
        return Spec(
            name="maskgit",
            draws="class",
            grid=(sizes.grid, sizes.grid),
            width=sizes.width,
            codebook_size=sizes.codebook_size,
            channels=None,
            mask_id=sizes.mask_id,
            has_log_prob=True,
            num_classes=sizes.num_classes,
        )

    @property
    def device(self) -> torch.device:
        return self.transformer.pos_emb.device

    def encode(self, what: Sequence[str] | Sequence[int]) -> ClassCondition:
        """Class labels, as numbers from 0 or as class names.

        Errors: ValueError naming the first label the model does not know.
        """
        config = self.transformer.config
        labels = [class_number(entry, config.num_classes, self.class_names) for entry in what]
        ids_B = config.first_class_id + torch.tensor(labels, dtype=torch.int64)
        return ClassCondition(ids_B.to(self.device)[:, None], 1)

    def with_null(self, condition: ClassCondition) -> ClassCondition:
        return ClassCondition(torch.cat([condition.ids_X1, self.null(condition).ids_X1]), 2)

    def null(self, condition: ClassCondition) -> ClassCondition:
        """The null branch by itself, one row per image."""
        return ClassCondition(torch.full_like(condition.ids_X1, self.transformer.config.null_id), 1)

    def features(self, canvas: Canvas, condition: ClassCondition) -> Tensor:
        """Last hidden states [G, B, L + 1, D]; the class token is the last row."""
        tokens_XL = canvas.tokens_BL.repeat(condition.num_branches, 1)
        features_XTD = self.transformer(torch.cat([tokens_XL, condition.ids_X1], dim=1))
        return features_XTD.unflatten(0, (condition.num_branches, len(condition)))

    def tokens(self, features_GBTD: Tensor, positions_BM: Tensor, guidance: float) -> CategoricalTokens:
        """The head at `positions_BM`, over image codes only; linear, so guidance mixes the features."""
        mixed_BMD = guided_rows(features_GBTD, positions_BM, guidance)
        return CategoricalTokens(self.transformer.logits(mixed_BMD, positions_BM), positions_BM)

    def embed(self, tokens_BN: Tensor, positions_BN: Tensor) -> Tensor:
        return self.transformer.embed(tokens_BN, positions_BN)

    def to_pixels(self, tokens_BL: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1]."""
        codes_BHW = tokens_BL.unflatten(1, self.spec.grid)
        num_pixels = (self.transformer.config.grid * self.codec.config.downscale) ** 2
        return in_portions(self.codec.decode, codes_BHW, num_pixels=num_pixels)

    def to_tokens(self, images_B3HW: Tensor) -> Tensor:
        """Codes [B, L] of images in [0, 1] (start canvases for inpainting)."""
        return self.codec.encode(images_B3HW).flatten(1)

    def blank(self, batch: int) -> Canvas:
        return self.spec.blank_codes(batch, self.device)

    def repeated_blocks(self) -> RepeatedBlocks:
        return RepeatedBlocks(tuple(self.transformer.transformer.layers))

    def schedule(self, num_steps: int, *, num_masked: int, options: SamplingOptions) -> list[Step]:
        """valeoai's schedule with the model's defaults where `options` says nothing."""
        return valeo_schedule(num_masked, num_steps, **options.over(self.sampling).of_codes())

    def unmask_rule(self, canvas: Canvas, noise: Noise) -> UnmaskRule:
        return by_confidence
