"""Meissonic behind the contract of a base model (core/protocol.py).

Sampler facts are the reference's: cosine counts, guidance constant at 9, confidence noise falling from 2 to
zero. Its backbone is told how many decode steps are left, which the canvas and the schedule know between
them; the condition carries the schedule (`PromptCondition.along`). Texts are encoded once however often they
occur, and everything else that no step changes is made with the condition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from swiftmask.core.arguments import check_images, check_size
from swiftmask.core.compiled import RepeatedBlocks
from swiftmask.core.files import write_model
from swiftmask.core.portions import in_portions
from swiftmask.core.protocol import Noise, SamplingOptions, Spec, UnmaskRule
from swiftmask.core.schedule import meissonic_schedule
from swiftmask.core.settings import about
from swiftmask.core.tokens import CategoricalTokens, guided_rows
from swiftmask.core.types import Canvas, Schedule, Step
from swiftmask.core.unmask import by_confidence
from swiftmask.core.vq_codec import VQCodec
from swiftmask.models.meissonic.network import NUM_MICRO, Conditioning, Transformer
from swiftmask.models.meissonic.prompts import Prompt, as_prompts
from swiftmask.models.meissonic.rotary import Rotary, angles_of, places_of, rotary_at
from swiftmask.models.meissonic.text import TextEmbedding, TextEncoder
from swiftmask.models.meissonic.weights import (
    TOKENIZER,
    Parts,
    Settings,
    networks_of,
    read_model,
    read_released,
)

RELEASED_SAMPLING = SamplingOptions(guidance=9.0, temperature=1.0, choice_temperature=2.0)
"""Defaults of the released models."""

RELEASED_STEPS, RELEASED_STEPS_1024 = 48, 64
"""Decode steps of the released scripts: of Monetico (512 pixels), and of the model of 1024 pixels."""


@dataclass(frozen=True, slots=True)
class PromptCondition:
    """Prompts ready for the backbone.

    Attributes:
        rows: one per image and branch, conditional ones first.
        null: those of the negative prompts, one per image, for `with_null`.
        rotary: positions of text and image.
        plan_S: masked tokens before each step of the schedule, descending.
    """

    rows: Conditioning
    null: Conditioning
    rotary: Rotary
    plan_S: tuple[int, ...]
    num_branches: int = 1

    def __len__(self) -> int:
        return len(self.null.vector_XD)

    def along(self, schedule: Schedule) -> Self:
        """The same condition in a decode of this schedule."""
        return replace(self, plan_S=tuple(step.num_masked_before for step in schedule))

    def steps_left(self, num_masked: int) -> int:
        """Steps still to come after the one that starts with so many masked tokens; between two steps, the
        later one counts.
        """
        return max(0, sum(before <= num_masked for before in self.plan_S) - 1)


class Meissonic(nn.Module):
    """A text-to-image masked generator: transformer over codes, CLIP text encoder, VQGAN codec.

    Args:
        size: height and width of the images in pixels. A model generates one size; `sized` gives the same
            networks at another.
        sampling: defaults of the schedule.
        steps: default number of decode steps. Also how far along a canvas is taken to be where no schedule
            was told.

    Errors: ValueError if the networks do not fit each other, or the size does not fit them.
    """

    def __init__(
        self,
        transformer: Transformer,
        text_encoder: TextEncoder,
        codec: VQCodec,
        *,
        size: tuple[int, int],
        sampling: SamplingOptions = RELEASED_SAMPLING,
        steps: int = RELEASED_STEPS,
    ) -> None:
        super().__init__()
        _check_fit(transformer, text_encoder, codec)
        check_size(size, codec.config.downscale * transformer.config.stride)
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.codec = codec
        self.size = size
        self.sampling = sampling
        self.steps = steps
        self.eval()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """From a model folder: float32, on the CPU. Errors name the missing or foreign file, key or shape."""
        parts, settings = read_model(folder)
        sampling, steps = settings.sampling or RELEASED_SAMPLING, settings.steps or RELEASED_STEPS
        with about(str(Path(folder) / "config.json")):
            return cls(*parts, size=settings.size, sampling=sampling, steps=steps)

    @classmethod
    def from_released(cls, folder: str | Path, *, text_encoder: str | Path | None = None) -> Self:
        """From a folder in the upstream layout (weights.py): Meissonic, Monetico or a fine-tune of one.

        Args:
            text_encoder: folder of another CLIP text encoder; the published images of the 1024-pixel model
                need `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`. None is the folder's own.
        """
        parts = read_released(folder, text_encoder=text_encoder)
        side = 32 * parts.transformer.config.stride * parts.codec.config.downscale
        steps = RELEASED_STEPS_1024 if parts.transformer.config.downsample else RELEASED_STEPS
        with about(str(folder)):
            return cls(*parts, size=(side, side), steps=steps)

    def save_pretrained(
        self, folder: str | Path, *, provenance: Mapping[str, object], dtype: torch.dtype = torch.float32
    ) -> None:
        """Write the folder `from_pretrained` reads: tokenizer first, then each file whole or not at all."""
        settings = Settings(
            model="meissonic",
            size=self.size,
            transformer=self.transformer.config,
            text_encoder=self.text_encoder.config,
            codec=self.codec.config,
            sampling=self.sampling,
            steps=self.steps,
        )
        self.text_encoder.tokenizer.save(Path(folder) / TOKENIZER)
        parts = networks_of(Parts(self.transformer, self.text_encoder, self.codec))
        write_model(folder, settings, parts, provenance=provenance, dtype=dtype)

    def sized(self, height: int, width: int) -> Self:
        """The same networks, generating images of another size.

        Errors: ValueError naming the nearest sizes there are.
        """
        return type(self)(
            self.transformer,
            self.text_encoder,
            self.codec,
            size=(height, width),
            sampling=self.sampling,
            steps=self.steps,
        )

    @property
    def spec(self) -> Spec:
        sizes, downscale = self.transformer.config, self.codec.config.downscale
        return Spec(
            name="meissonic",
            draws="prompt",
            grid=(self.size[0] // downscale, self.size[1] // downscale),
            width=sizes.width,
            codebook_size=sizes.codebook_size,
            channels=None,
            mask_id=sizes.mask_id,
            has_log_prob=True,
        )

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def encode(self, what: Sequence[str | Prompt] | Sequence[int]) -> PromptCondition:
        """Prompts, plain or with a negative prompt and facts about the image (`Prompt`).

        Errors: ValueError naming a prompt that is empty, no text, or longer than the text encoder reads.
        """
        if self.device.type == "meta":  # where operations are counted there is nothing to read
            return self._unread(len(what))
        prompts = as_prompts(what)
        unique = _texts(prompts)
        embedded = self.text_encoder(self.text_encoder.tokenizer(unique).to(self.device))
        text, negative = (
            embedded.rows(torch.tensor([unique.index(entry) for entry in texts]).to(self.device))
            for texts in ([p.text for p in prompts], [p.negative for p in prompts])
        )
        micro_B5 = torch.tensor([prompt.micro(self.size) for prompt in prompts]).to(self.device)
        return self.condition(text, negative, micro_B5)

    def check_prompts(self, what: Sequence[str | Prompt]) -> None:
        """Errors: those of `encode`, at the price of the tokenizer alone."""
        self.text_encoder.tokenizer(_texts(as_prompts(what)))

    def truncated_prompt(self, text: str) -> str:
        """The beginning of a text that is no longer than prompts may be; the text itself if it fits."""
        return self.text_encoder.tokenizer.truncated(text)

    def condition(self, text: TextEmbedding, negative: TextEmbedding, micro_B5: Tensor) -> PromptCondition:
        """A condition from texts already embedded, such as a trainer keeps them.

        Args:
            text, negative: one row per image.
            micro_B5: width, height, top, left and score of each (`Prompt.micro`).
        """
        sizes, spec = self.transformer.config, self.spec
        grid = (spec.grid[0] // sizes.stride, spec.grid[1] // sizes.stride)
        places_T3 = places_of(grid, text.states_XTC.shape[1])
        plan = meissonic_schedule(spec.num_tokens, min(self.steps, spec.num_tokens))
        return PromptCondition(
            rows=self.transformer.condition(*text, micro_B5),
            null=self.transformer.condition(*negative, micro_B5),
            rotary=rotary_at(places_T3, sizes.rotary_axes, self.device),
            plan_S=tuple(step.num_masked_before for step in plan),
        )

    def with_null(self, condition: PromptCondition) -> PromptCondition:
        """The negative prompts' rows beside the prompts' own."""
        both = (torch.cat(pair) for pair in zip(condition.rows, condition.null, strict=True))
        return replace(condition, rows=Conditioning(*both), num_branches=2)

    def null(self, condition: PromptCondition) -> PromptCondition:
        """The negative prompts' rows by themselves."""
        return replace(condition, rows=condition.null)

    def features(self, canvas: Canvas, condition: PromptCondition) -> Tensor:
        """Last hidden states [G, B, L, D], one row per canvas token."""
        ids_BHW = canvas.tokens_BL.unflatten(1, self.spec.grid)
        left = float(condition.steps_left(canvas.num_masked))
        timestep_1 = torch.full((1,), left, device=self.device)
        features_XLD = self.transformer(ids_BHW, condition.rows, timestep_1, condition.rotary)
        return features_XLD.unflatten(0, (condition.num_branches, len(condition)))

    def tokens(self, features_GBTD: Tensor, positions_BM: Tensor, guidance: float) -> CategoricalTokens:
        """The head at `positions_BM`, over image codes only; linear, so guidance mixes the features."""
        mixed_BMD = guided_rows(features_GBTD, positions_BM, guidance)
        return CategoricalTokens(self.transformer.logits(mixed_BMD), positions_BM)

    def embed(self, tokens_BN: Tensor, positions_BN: Tensor) -> Tensor:
        """Token embeddings turned by the rotary angles of their places on the canvas: nothing is added to a
        token here to say where it is.
        """
        columns = self.spec.grid[1]
        rows_BN, columns_BN = positions_BN // columns, positions_BN % columns
        places_BN3 = torch.stack([torch.zeros_like(rows_BN), rows_BN, columns_BN], dim=-1).float()
        angles_B1NP = angles_of(places_BN3, self.transformer.config.rotary_axes)[:, None]
        heads_BNTH = (
            self.transformer.embed(tokens_BN)
            .unflatten(-1, (-1, self.transformer.config.head_width))
            .transpose(1, 2)
        )
        return Rotary(angles_B1NP.cos(), angles_B1NP.sin()).turn(heads_BNTH).transpose(1, 2).flatten(2)

    def to_pixels(self, tokens_BL: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1]."""
        codes_BHW = tokens_BL.unflatten(1, self.spec.grid)
        num_pixels = self.spec.num_tokens * self.codec.config.downscale**2
        return in_portions(self.codec.decode, codes_BHW, num_pixels=num_pixels)

    def to_tokens(self, images_B3HW: Tensor) -> Tensor:
        """Codes [B, L] of images in [0, 1] (start canvases for inpainting).

        Errors: ValueError for images of another size than the model generates.
        """
        check_images(images_B3HW, self.size)
        return self.codec.encode(images_B3HW).flatten(1)

    def blank(self, batch: int) -> Canvas:
        return self.spec.blank_codes(batch, self.device)

    def repeated_blocks(self) -> RepeatedBlocks:
        transformer = self.transformer
        return RepeatedBlocks((*transformer.transformer_blocks, *transformer.single_transformer_blocks))

    def schedule(self, num_steps: int, *, num_masked: int, options: SamplingOptions) -> list[Step]:
        """Meissonic's schedule with the model's defaults where `options` says nothing."""
        return meissonic_schedule(num_masked, num_steps, **options.over(self.sampling).of_codes())

    def unmask_rule(self, canvas: Canvas, noise: Noise) -> UnmaskRule:
        return by_confidence

    def _unread(self, batch: int) -> PromptCondition:
        """A condition of the right shapes and no content."""
        sizes = self.text_encoder.config
        length, device = sizes.max_position_embeddings, self.device
        empty = TextEmbedding(
            torch.empty(batch, length, sizes.hidden_size, device=device),
            torch.empty(batch, sizes.projection_dim, device=device),
        )
        return self.condition(empty, empty, torch.empty(batch, NUM_MICRO, device=device))


def _texts(prompts: Sequence[Prompt]) -> list[str]:
    """Every text of some prompts once, those to generate first."""
    return list(dict.fromkeys([p.text for p in prompts] + [p.negative for p in prompts]))


def _check_fit(transformer: Transformer, text_encoder: TextEncoder, codec: VQCodec) -> None:
    sizes, text = transformer.config, text_encoder.config
    reads, gives = (sizes.text_width, sizes.width), (text.hidden_size, text.projection_dim)
    if reads != gives:
        raise ValueError(
            f"the transformer reads texts of width {reads[0]}, pooled to {reads[1]}, the text encoder gives "
            f"{gives[0]} and {gives[1]}: use the text encoder it was trained with"
        )
    if codec.config.num_vq_embeddings != sizes.codebook_size:
        raise ValueError(
            f"the transformer generates {sizes.codebook_size} codes, the codec has "
            f"{codec.config.num_vq_embeddings}: use the codec it was trained with"
        )
