"""HPSv2.1: which image people would prefer for a prompt, differentiable in the image.

Wu et al., arXiv 2306.09341. The score is the cosine between the embeddings of a fine-tuned CLIP ViT-H-14
(tables report it times 100). The released file is a state dict of open_clip; its keys are mapped onto
transformers' CLIP here, because the authors' package lacks its vocabulary and pins old versions.

Left out: open_clip's repair of broken Unicode and HTML entities in prompts, which plain text does not need.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from swiftmask.core.files import count_modules, load_strict, require_keys
from swiftmask.core.reading import State, read_tensors
from swiftmask.rewards.clip import ClipSimilarity, check_fit, check_images
from swiftmask.rewards.clip_files import PROCESSOR_FILES, clip_classes, find_folder, read_tokenizer
from swiftmask.rewards.clip_preprocessing import Preprocessing

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

WEIGHTS_FILE = "HPS_v2.1_compressed.pt"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Tokenizer and preprocessing of the CLIP that HPSv2.1 was fine-tuned from."""

_NUM_HEADS = 16
"""Of both encoders of ViT-H-14, which no tensor tells."""

_FIRST_MLP = "transformer.resblocks.0.mlp.c_fc.weight"
_SIZE_KEYS = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    f"visual.{_FIRST_MLP}": 2,
    "token_embedding.weight": 2,
    "positional_embedding": 2,
    _FIRST_MLP: 2,
    "text_projection": 2,
    "visual.proj": 2,
}
"""Tensors that tell sizes or are turned, and their numbers of axes."""
_CAUSAL_MASK = "attn_mask"
"""Older open_clip saves it beside the weights; transformers makes its own."""

_TRANSPOSED = ("visual.proj", "text_projection")
"""Kept as [in, out], where a linear layer has [out, in]."""

_RENAMED = (
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


@dataclass(frozen=True, slots=True)
class HumanPreferenceScore:
    """`cos`, typically 0.2 to 0.35."""

    similarity: ClipSimilarity

    def __call__(self, images_B3HW: Tensor, prompts: Sequence[str]) -> Tensor:
        """`scores_B`, float32. Gradients flow into the images; errors as `ClipSimilarity`."""
        check_images(images_B3HW, prompts)
        side = self.similarity.model.vision_model.config.image_size
        assert isinstance(side, int)
        return self.similarity(whole_image(images_B3HW, side), prompts)


def load_hps(
    weights: str | Path,
    *,
    processor: str | Path = PROCESSOR,
    dtype: torch.dtype = torch.float32,
) -> HumanPreferenceScore:
    """HPSv2.1 (or v2.0, whose file is alike) from the released file.

    Args:
        weights: `HPS_v2.1_compressed.pt`, or the folder it is in.
        processor: local folder, or Hugging Face repository, of tokenizer and preprocessing.
        dtype: of the weights.

    Errors: FileNotFoundError or ValueError naming what is missing, damaged or not installed, and the mend.
    """
    clip_classes()
    path = _find_weights(weights)
    folder = find_folder(processor, PROCESSOR_FILES)
    tokenizer, preprocessing = read_tokenizer(folder), Preprocessing.read(folder)
    model = clip_of_open_clip(read_tensors(path), source=str(path))
    check_fit(model, tokenizer, preprocessing, f"{path} and {folder}")
    _check_end(model, tokenizer, f"{path} and {folder}")
    model = model.to(dtype)  # pyright: ignore[reportArgumentType]
    return HumanPreferenceScore(ClipSimilarity(model, tokenizer, preprocessing))


def clip_of_open_clip(state: State, *, source: str, num_heads: int = _NUM_HEADS) -> CLIPModel:
    """transformers' CLIP with the weights of an open_clip ViT with GELU, float32, on the CPU.

    Sizes come from the tensors, the number of attention heads (of both encoders) from `num_heads`.

    Errors: ValueError naming keys that are missing or too many, wrong shapes, or a width no multiple of the
    heads.
    """
    from accelerate import init_empty_weights

    require_keys(state, _SIZE_KEYS, source, "an open_clip ViT (HPS_v2.1_compressed.pt is one)")
    config = _config(state, num_heads, source)
    with init_empty_weights():
        model = clip_classes()[1](config)
    load_strict(model, to_transformers(state), source=source)
    return model


def to_transformers(state: State) -> dict[str, Tensor]:
    """An open_clip state dict under the names of transformers; unknown keys keep theirs."""
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key == _CAUSAL_MASK:
            continue
        name = _rename(key)
        if ".in_proj_" in name:  # queries, keys and values in one matrix
            parts = zip("qkv", value.chunk(3), strict=False)
            renamed |= {name.replace("in_proj_", f"{part}_proj."): rows for part, rows in parts}
        else:
            renamed[name] = value.t() if key in _TRANSPOSED else value
    return renamed


def whole_image(images_B3HW: Tensor, side: int) -> Tensor:
    """The whole image inside `side` x `side` pixels with black bars, [B, 3, side, side].

    HPSv2 cuts nothing off, where CLIP crops. A square image has no bars and is returned as it is.
    """
    height, width = images_B3HW.shape[-2:]
    if height == width:
        return images_B3HW
    rows, columns = (max(1, round(side * length / max(height, width))) for length in (height, width))
    images_B3HW = images_B3HW.to(torch.promote_types(images_B3HW.dtype, torch.float32))
    resized_B3HW = F.interpolate(images_B3HW, (rows, columns), mode="bicubic", antialias=True)
    top, left = (side - rows) // 2, (side - columns) // 2
    return F.pad(resized_B3HW, (left, side - columns - left, top, side - rows - top))


def _find_weights(weights: str | Path) -> Path:
    path = Path(weights).expanduser()
    path = path / WEIGHTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"no HPSv2.1 weights at {path}: download {WEIGHTS_FILE} of the Hugging Face repository "
            "xswu/HPSv2 and give its path"
        )
    return path


def _rename(key: str) -> str:
    for pattern, replacement in _RENAMED:
        key = re.sub(pattern, replacement, key)
    return key


def _config(state: State, num_heads: int, source: str) -> CLIPConfig:
    text, vision = (_encoder(state, prefix, num_heads, source) for prefix in ("", "visual."))
    patch = state["visual.conv1.weight"].shape[-1]
    grid = math.isqrt(len(state["visual.positional_embedding"]) - 1)
    num_text_tokens = len(state["token_embedding.weight"])
    text |= {"vocab_size": num_text_tokens, "max_position_embeddings": len(state["positional_embedding"])}
    # open_clip reads a prompt's embedding at its largest token, which is the end of the text.
    text |= {"bos_token_id": num_text_tokens - 2, "eos_token_id": num_text_tokens - 1}
    vision |= {"patch_size": patch, "image_size": grid * patch}
    width = state["text_projection"].shape[-1]
    return clip_classes()[0](text_config=text, vision_config=vision, projection_dim=width)


def _encoder(state: State, prefix: str, num_heads: int, source: str) -> dict[str, object]:
    inner_width, width = state[f"{prefix}{_FIRST_MLP}"].shape
    if width % num_heads:
        raise ValueError(
            f"{source} is no ViT-H-14: expected a width that {num_heads} attention heads share, got {width}"
        )
    return {
        "hidden_size": width,
        "intermediate_size": inner_width,
        "num_hidden_layers": count_modules(state, re.escape(prefix) + r"transformer\.resblocks\.(\d+)\."),
        "num_attention_heads": num_heads,
        "hidden_act": "gelu",  # the released OpenAI models have QuickGELU, ViT-H-14 does not
    }


def _check_end(model: CLIPModel, tokenizer: CLIPTokenizer, what: str) -> None:
    expected, got = model.text_model.config.eos_token_id, tokenizer.eos_token_id
    if got != expected:
        raise ValueError(
            f"{what} do not belong together: the model's texts end with token {expected}, the tokenizer's "
            f"with {got}"
        )
