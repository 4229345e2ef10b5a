"""Lumina-DiMOO behind the contract of a base model (core/protocol.py).

Prompts of a batch may differ in length and both guidance branches go through in one forward. The head is
linear, so guidance mixes features first and the logits cover image codes at masked positions only.

Beside the contract the model answers what two methods ask of it: `fresh_tokens` for the shortcut with rotary
positions, and `features_and_cache`, `recompute` and `peak_logits` for ML-Cache.
Left out: understanding images; and editing them, which would bend the contract: upstream mixes three
branches with two scales (text and image) at every step, where the contract has two branches and one scale
in schedule, head and shortcut alike, and its prompts hold whole images, where a prompt here is a text.
In- and outpainting need neither: they are start canvases.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from swiftmask.core.arguments import check_images
from swiftmask.core.compiled import RepeatedBlocks
from swiftmask.core.files import write_model
from swiftmask.core.llama import FreshTokens
from swiftmask.core.portions import in_portions
from swiftmask.core.protocol import Noise, SamplingOptions, Spec, TokenDistribution, UnmaskRule
from swiftmask.core.schedule import dimoo_schedule
from swiftmask.core.settings import about
from swiftmask.core.tokens import CategoricalTokens, gather_rows, guided_rows
from swiftmask.core.types import Canvas, Step
from swiftmask.core.vq_codec import VQCodec
from swiftmask.models.lumina_dimoo.layout import (
    Layout,
    PromptCondition,
    Sampler,
    Vocabulary,
    grid_of,
)
from swiftmask.models.lumina_dimoo.memory import CodecNeed, Draw, Plan, check_room
from swiftmask.models.lumina_dimoo.network import Backbone, LayerCache
from swiftmask.models.lumina_dimoo.prompts import Prompts
from swiftmask.models.lumina_dimoo.truncation import TruncatedTokens, by_truncated_confidence, guided_logits
from swiftmask.models.lumina_dimoo.unmask import by_plain_confidence
from swiftmask.models.lumina_dimoo.weights import (
    Parts,
    Placement,
    Settings,
    read_model,
    read_own_settings,
    read_released,
)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NAMES: dict[torch.dtype, Any] = {dtype: name for name, dtype in _DTYPES.items()}
_SAMPLERS: dict[str, UnmaskRule] = {"exact": by_plain_confidence, "bf16_compat": by_truncated_confidence}

RELEASED_SAMPLING = SamplingOptions(guidance=5.0, temperature=1.0, choice_temperature=1.0)
"""Upstream's defaults: `cfg_scale = 4` (guidance = 1 + s), and one temperature for tokens and choice."""

RELEASED_STEPS = 64
RELEASED_SIZE = (1024, 1024)


class LuminaDiMOO(nn.Module):
    """A text-to-image masked generator: LLaDA over text and codes, VQ codec.

    Args:
        grid: rows and columns of codes of the images generated; `sized` gives the same model for other sizes.
        sampling: defaults of the schedule.
        steps: default number of decode steps.
        sampler: "exact", or "bf16_compat" for upstream's truncated noise (truncation.py says why not).

    Errors: ValueError if vocabulary, backbone and codec do not belong together.
    """

    def __init__(
        self,
        backbone: Backbone,
        codec: VQCodec,
        prompts: Prompts,
        *,
        vocabulary: Vocabulary,
        grid: tuple[int, int],
        sampling: SamplingOptions = RELEASED_SAMPLING,
        steps: int = RELEASED_STEPS,
        sampler: Sampler = "exact",
    ) -> None:
        super().__init__()
        _check_parts(backbone, codec, vocabulary)
        if sampler not in _SAMPLERS:
            raise ValueError(f"sampler must be {' or '.join(_SAMPLERS)}, got {sampler!r}")
        self.backbone = backbone
        self.codec = codec
        self.prompts = prompts
        self.layout = Layout(vocabulary, grid)
        self.sampling = sampling
        self.steps = steps
        self.sampler: Sampler = sampler
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        blocks_on_device: int | None = None,
    ) -> Self:
        """From a model folder of ours. Arguments and errors as for `from_released`; dtype None is the one
        that the model was written from.
        """
        settings = read_own_settings(Path(folder))
        placement = Placement(
            dtype=dtype or _DTYPES[settings.dtype],
            device=torch.device(device),
            blocks_on_device=blocks_on_device,
        )
        with about(str(Path(folder) / "config.json"), str(folder)):
            return cls._of(
                read_model(folder, settings, placement),
                settings.sampling or RELEASED_SAMPLING,
                settings.sampler,
                settings.steps or RELEASED_STEPS,
            )

    @classmethod
    def from_released(
        cls,
        folder: str | Path,
        *,
        size: tuple[int, int] = RELEASED_SIZE,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        blocks_on_device: int | None = None,
        sampler: Sampler = "exact",
    ) -> Self:
        """From the folder of `Alpha-VLLM/Lumina-DiMOO`: each tensor straight to its device and dtype.

        Args:
            size: height and width of the images, divisible by 16.
            dtype: of the backbone; the codec stays in float32, as upstream.
            blocks_on_device: how many of the backbone's blocks the device keeps; the others wait in host
                memory and visit it at every step. None keeps all there.

        Errors: FileNotFoundError; ValueError for a file that does not fit, unknown special tokens, or too
        little memory (estimated before the backbone is read).
        """
        placement = Placement(dtype=dtype, device=torch.device(device), blocks_on_device=blocks_on_device)
        parts = read_released(folder, size=size, placement=placement)
        return cls._of(parts, RELEASED_SAMPLING, sampler, RELEASED_STEPS)

    @classmethod
    def _of(cls, parts: Parts, sampling: SamplingOptions, sampler: Sampler, steps: int) -> Self:
        return cls(
            parts.backbone,
            parts.codec,
            parts.prompts,
            vocabulary=parts.vocabulary,
            grid=parts.grid,
            sampling=sampling,
            steps=steps,
            sampler=sampler,
        )

    def save_pretrained(
        self, folder: str | Path, *, provenance: Mapping[str, object], dtype: torch.dtype = torch.float32
    ) -> None:
        """Write the folder `from_pretrained` reads: tokenizer first, then each file whole or not at all."""
        self.prompts.save(Path(folder))
        settings = Settings(
            model="lumina_dimoo",
            grid=self.layout.grid,
            vocabulary=self.layout.vocabulary,
            prompts=self.prompts.settings(),
            backbone=self.backbone.config,
            codec=self.codec.config,
            sampling=self.sampling,
            steps=self.steps,
            sampler=self.sampler,
            dtype=_NAMES[self.backbone.dtype],
        )
        parts = {"backbone": self.backbone, "codec": self.codec}
        write_model(folder, settings, parts, provenance=provenance, dtype=dtype)

    def sized(self, height: int, width: int) -> Self:
        """The same model, sharing its weights, for images of another size.

        Errors: ValueError unless both sides are divisible by the codec's pixels per code (16 as released).
        """
        return self._with(grid=grid_of(height, width, self.codec.config.downscale))

    def with_sampler(self, sampler: Sampler) -> Self:
        """The same model, sharing its weights, with another sampler."""
        return self._with(sampler=sampler)

    @property
    def spec(self) -> Spec:
        codes = self.layout.vocabulary.codebook_size
        return Spec(
            name="lumina_dimoo",
            draws="prompt",
            grid=self.layout.grid,
            width=self.backbone.config.width,
            codebook_size=codes,
            channels=None,
            mask_id=codes,
            has_log_prob=True,
        )

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def encode(self, what: Sequence[str] | Sequence[int]) -> PromptCondition:
        """Prompts. Errors: ValueError naming a prompt's part that the model cannot read."""
        ids = [self.prompts.ids(str(text)) for text in what]
        return PromptCondition.of(ids, self.prompts.null_ids, self.device)

    def with_null(self, condition: PromptCondition) -> PromptCondition:
        return condition.with_null()

    def null(self, condition: PromptCondition) -> PromptCondition:
        """The null prompt by itself, once per image."""
        return PromptCondition.of([condition.null_ids] * len(condition), condition.null_ids, self.device)

    def features(self, canvas: Canvas, condition: PromptCondition) -> Tensor:
        """Last hidden states [G, B, T, D] of padding, prompt and image; those of padding mean nothing."""
        ids_XT = self._sequence(canvas, condition)
        features_XTD = self.backbone(ids_XT, condition.places(ids_XT.shape[1]), condition.padding)
        return features_XTD.unflatten(0, (condition.num_branches, len(condition)))

    def tokens(self, features_GBTD: Tensor, positions_BM: Tensor, guidance: float) -> TokenDistribution:
        """The head at `positions_BM`, over image codes only."""
        columns_BM = self.layout.columns(positions_BM, features_GBTD.shape[2])
        if self.sampler == "bf16_compat":
            logits_GBMV = self._code_logits(gather_rows(features_GBTD, columns_BM))
            return TruncatedTokens(guided_logits(logits_GBMV, guidance), positions_BM)
        mixed_BMD = guided_rows(features_GBTD, columns_BM, guidance)
        return CategoricalTokens(self._code_logits(mixed_BMD), positions_BM)

    def embed(self, tokens_BN: Tensor, positions_BN: Tensor) -> Tensor:
        """Embeddings [B, N, D] of codes, turned by their places in the image.

        The backbone adds no positions, it turns queries and keys; so does this, over the whole width, for
        readers without rotary positions of their own.
        """
        embedded_BND = self.backbone.embed(tokens_BN + self.layout.vocabulary.first_code)
        columns_BN = self.layout.columns(positions_BN, self.layout.num_image_rows)
        rotary = self.backbone.rotary(columns_BN)
        heads_BNHd = embedded_BND.unflatten(-1, (self.backbone.config.num_heads, -1))
        return rotary.turn(heads_BNHd.transpose(1, 2)).transpose(1, 2).flatten(2)

    def to_pixels(self, tokens_BL: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1]."""
        codes_BHW = tokens_BL.unflatten(1, self.layout.grid)
        num_pixels = self.spec.num_tokens * self.codec.config.downscale**2
        return in_portions(self.codec.decode, codes_BHW, num_pixels=num_pixels)

    def to_tokens(self, images_B3HW: Tensor) -> Tensor:
        """Codes [B, L] of images in [0, 1] (start canvases for in- and outpainting).

        Errors: ValueError unless they have the size that this model generates.
        """
        height, width = (self.codec.config.downscale * side for side in self.layout.grid)
        check_images(images_B3HW, (height, width))
        return self.codec.encode(images_B3HW).flatten(1)

    def blank(self, batch: int) -> Canvas:
        return self.spec.blank_codes(batch, self.device)

    def repeated_blocks(self) -> RepeatedBlocks:
        return RepeatedBlocks(self.backbone.blocks)

    def schedule(self, num_steps: int, *, num_masked: int, options: SamplingOptions) -> list[Step]:
        """Lumina-DiMOO's schedule with the model's defaults where `options` says nothing."""
        return dimoo_schedule(num_masked, num_steps, **options.over(self.sampling).of_codes())

    def unmask_rule(self, canvas: Canvas, noise: Noise) -> UnmaskRule:
        return _SAMPLERS[self.sampler]

    @property
    def rope_theta(self) -> float:
        return self.backbone.config.rope_theta

    def fresh_tokens(
        self, condition: PromptCondition, tokens_BN: Tensor, positions_BN: Tensor
    ) -> FreshTokens:
        """What changed with codes `tokens_BN` at `positions_BN`: what a rotary shortcut reads.

        The conditional branch sees its prompt again at every step, the null branch never (MIGM-Shortcut,
        arXiv 2602.23996).
        """
        branches, prompt = condition.num_branches, condition.prompts_XP.shape[1]
        num_rows = prompt + self.layout.num_image_rows
        places_XT, padding = condition.places(num_rows), condition.padding
        codes_XN = (tokens_BN + self.layout.vocabulary.first_code).repeat(branches, 1)
        columns_XN = self.layout.columns(positions_BN, num_rows).repeat(branches, 1)
        return FreshTokens(
            self.backbone.embed(torch.cat([condition.prompts_XP, codes_XN], dim=1)),
            torch.cat([places_XT[:, :prompt], places_XT.gather(1, columns_XN)], dim=1),
            padding[: len(condition)] + (prompt,) * (len(padding) - len(condition)),
            places_XT,
            padding,
        )

    def check_room(self, condition: PromptCondition, *, branches: int, method: str) -> None:
        """Whether a decode fits beside the weights; `method` is the name of its feature function.

        Errors: ValueError saying what would.
        """
        draw = Draw(
            batch=len(condition),
            branches=branches,
            num_prompt=max(*condition.lengths, len(condition.null_ids)),
            cached=method == "ml-cache",
        )
        codec, sizes = CodecNeed.of(self.codec), self.backbone.config
        plan = Plan(config=sizes, grid=self.layout.grid, dtype=self.backbone.dtype, codec=codec, draw=draw)
        check_room(plan, self.device)

    def features_and_cache(self, canvas: Canvas, condition: PromptCondition) -> tuple[Tensor, LayerCache]:
        """`features`, and the keys and values of every block."""
        ids_XT = self._sequence(canvas, condition)
        places_XT = condition.places(ids_XT.shape[1])
        features_XTD, cache = self.backbone.forward_with_cache(ids_XT, places_XT, condition.padding)
        return features_XTD.unflatten(0, (condition.num_branches, len(condition))), cache

    def recompute(
        self, canvas: Canvas, condition: PromptCondition, columns_XK: Tensor, cache: LayerCache
    ) -> tuple[Tensor, LayerCache]:
        """Features [X, K, D] of some columns of every sequence, the others as cached, and the next cache."""
        ids_XT = self._sequence(canvas, condition)
        fresh_XK, places_XT = ids_XT.gather(1, columns_XK), condition.places(ids_XT.shape[1])
        return self.backbone.recompute(fresh_XK, columns_XK, places_XT, cache, condition.padding)

    def peak_logits(self, features_GBTD: Tensor) -> Tensor:
        """The largest logit over image codes at every column: [G, B, T]."""
        return self._code_logits(features_GBTD).amax(-1)

    def sequence_lengths(self, condition: PromptCondition) -> tuple[int, ...]:
        """Columns of each row [G * B] that are not padding, which comes first."""
        return tuple(length + self.layout.num_image_rows for length in condition.lengths)

    def padding(self, condition: PromptCondition) -> Tensor:
        """Columns of each row that are padding, on the device: int64 [G * B]."""
        return condition.pad_X

    def columns(self, positions_BN: Tensor, num_columns: int) -> Tensor:
        """Where canvas positions stand in sequences `num_columns` long."""
        return self.layout.columns(positions_BN, num_columns)

    def _sequence(self, canvas: Canvas, condition: PromptCondition) -> Tensor:
        return self.layout.sequence(condition.prompts_XP, canvas.tokens_BL, canvas.masked_BL)

    def _code_logits(self, features_D: Tensor) -> Tensor:
        words = self.layout.vocabulary
        return self.backbone.logits(features_D, words.first_code, words.codebook_size)

    def _with(self, *, grid: tuple[int, int] | None = None, sampler: Sampler | None = None) -> Self:
        return type(self)(
            self.backbone,
            self.codec,
            self.prompts,
            vocabulary=self.layout.vocabulary,
            grid=grid or self.layout.grid,
            sampling=self.sampling,
            steps=self.steps,
            sampler=sampler or self.sampler,
        )


def _check_parts(backbone: Backbone, codec: VQCodec, vocabulary: Vocabulary) -> None:
    if vocabulary.size > backbone.config.vocabulary_size:
        raise ValueError(
            f"the special tokens and codes need a vocabulary of {vocabulary.size}, the backbone knows "
            f"{backbone.config.vocabulary_size}: these ids belong to another checkpoint"
        )
    if codec.config.num_vq_embeddings != vocabulary.codebook_size:
        raise ValueError(
            f"the backbone has {vocabulary.codebook_size} image codes, the codec "
            f"{codec.config.num_vq_embeddings}: use the codec it was trained with (vqvae/ beside the weights)"
        )
