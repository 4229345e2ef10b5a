"""PickScore and CLIP score: how well an image shows its prompt, differentiable in the image.

Both compare the embeddings of a CLIP model (Radford et al., arXiv 2103.00020). PickScore (Kirstain et al.,
arXiv 2305.01569) is a CLIP-H fine-tuned on human choices, scored as its model card does. CLIP score (Hessel
et al., arXiv 2104.08718) is 100 max(cos, 0) as reported in tables (its own paper scales by 2.5).

A reward here is no `nn.Module`, so that a trainer holding one neither saves, averages nor trains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from swiftmask.rewards.clip_files import (
    PROCESSOR_FILES,
    clip_classes,
    find_folder,
    find_model,
    read_model,
    read_tokenizer,
)
from swiftmask.rewards.clip_preprocessing import Preprocessing

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

PICK_SCORE = "yuvalkirstain/PickScore_v1"
CLIP_LARGE = "openai/clip-vit-large-patch14"
_PROCESSORS = {PICK_SCORE: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}
"""Where a checkpoint's card takes tokenizer and preprocessing from, if not from its own repository."""


class ClipSimilarity:
    """Cosine between each image and its prompt.

    The weights are frozen, follow the images to their device, and keep the dtype they were loaded in. Every
    prompt is embedded once and kept (4 KB for CLIP-H).
    """

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, preprocessing: Preprocessing) -> None:
        self.model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._preprocess = preprocessing
        self._texts: dict[str, Tensor] = {}

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines in [-1, 1], float32 [B], on the device of the images.

        Args:
            images_B3HW: in [0, 1], of any size; gradients flow into them.
            prompts: one per image; cut where the model's context ends.

        Errors: ValueError for images of another form, or not as many prompts as images.
        """
        check_images(images_B3HW, prompts)
        image_BD = self.embed_images(images_B3HW)  # first: texts are embedded where the images are
        return (image_BD * self._embed_prompts(prompts)).sum(dim=-1)

    def embed_images(self, images_B3HW: Tensor) -> Tensor:
        """Unit vectors [B, D] of images in [0, 1]; the weights follow them to their device."""
        self._follow(images_B3HW.device)
        pixels_B3HW = self._preprocess(images_B3HW).to(self.model.dtype)
        pooled_BD = self.model.vision_model(pixel_values=pixels_B3HW).pooler_output
        return _unit(self.model.visual_projection(pooled_BD))

    def _embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        unseen = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._texts))
        if unseen:
            self._texts |= zip(unseen, self._embed_unseen(unseen), strict=True)
        return torch.stack([self._texts[prompt] for prompt in prompts])

    def _embed_unseen(self, prompts: list[str]) -> Tensor:
        device = self.model.device
        # What is kept must not depend on the autocast of whoever asks first.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            context = self.model.text_model.config.max_position_embeddings
            tokens = self._tokenizer(
                prompts, padding=True, truncation=True, max_length=context, return_tensors="pt"
            )
            pooled_BD = self.model.text_model(input_ids=tokens.input_ids.to(device)).pooler_output
            return _unit(self.model.text_projection(pooled_BD))

    def _follow(self, device: torch.device) -> None:
        if self.model.device != device:
            # Weights moved in inference mode would stay inference tensors, which autograd refuses later.
            with torch.inference_mode(False):
                self.model.to(device)  # pyright: ignore[reportArgumentType]
                self._texts = {prompt: text_D.to(device) for prompt, text_D in self._texts.items()}


@dataclass(frozen=True, slots=True)
class PickScore:
    """`exp(logit_scale) cos`."""

    similarity: ClipSimilarity

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """`scores_B`, float32."""
        cosine_B = self.similarity(images_B3HW, prompts)
        return self.similarity.model.logit_scale.float().exp() * cosine_B


@dataclass(frozen=True, slots=True)
class ClipScore:
    """`100 max(cos, 0)`."""

    similarity: ClipSimilarity

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """`scores_B` in [0, 100], float32. Where the cosine is negative the gradient is zero."""
        return 100 * self.similarity(images_B3HW, prompts).clamp(min=0)


def load_pick_score(
    source: str | Path = PICK_SCORE,
    *,
    processor: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> PickScore:
    """PickScore of a local folder or Hugging Face repository.

    Args:
        source: holds `config.json` and the weights.
        processor: folder or repository of tokenizer and preprocessing; None is `source` itself (for the
            released PickScore, the repository its card names).
        dtype: of the weights.

    Errors: FileNotFoundError or ValueError naming what is missing, damaged or not installed, and the mend.
    """
    return PickScore(_load(source, processor, dtype))


def load_clip_score(
    source: str | Path = CLIP_LARGE,
    *,
    processor: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> ClipScore:
    """CLIP score of a local folder or Hugging Face repository; arguments and errors as `load_pick_score`."""
    return ClipScore(_load(source, processor, dtype))


def _load(source: str | Path, processor: str | Path | None, dtype: torch.dtype) -> ClipSimilarity:
    clip_classes()
    processor_folder = find_folder(processor or _PROCESSORS.get(str(source), source), PROCESSOR_FILES)
    tokenizer, preprocessing = read_tokenizer(processor_folder), Preprocessing.read(processor_folder)
    model = read_model(find_model(source))
    check_fit(model, tokenizer, preprocessing, f"{source} and {processor_folder}")
    model = model.to(dtype)  # pyright: ignore[reportArgumentType]
    return ClipSimilarity(model, tokenizer, preprocessing)


def check_fit(model: CLIPModel, tokenizer: CLIPTokenizer, preprocessing: Preprocessing, what: str) -> None:
    size, vocabulary = model.vision_model.config.image_size, model.text_model.config.vocab_size
    if preprocessing.crop != (size, size):
        raise ValueError(
            f"{what} do not belong together: the model sees {size}x{size} pixels, the preprocessing cuts "
            f"{preprocessing.crop[0]}x{preprocessing.crop[1]}"
        )
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"{what} do not belong together: the model knows {vocabulary} text tokens, the tokenizer has "
            f"{len(tokenizer)}"
        )


def check_images(images_B3HW: Tensor, prompts: Sequence[str]) -> None:
    if images_B3HW.ndim != 4 or images_B3HW.shape[1] != 3 or not images_B3HW.is_floating_point():
        raise ValueError(
            "expected images [B, 3, H, W] with real values in [0, 1], got "
            f"{tuple(images_B3HW.shape)} {images_B3HW.dtype}"
        )
    if isinstance(prompts, str) or len(prompts) != len(images_B3HW):
        got = "a single string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise ValueError(f"expected one prompt per image, got {len(images_B3HW)} images and {got}")


def _unit(embedding_BD: Tensor) -> Tensor:
    return F.normalize(embedding_BD.float(), dim=-1)
