"""Captioned pictures of Scenes as recipes need them: what they show, the words of their captions, batches for
a codec, and a cache of what a codec made of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from swiftmask.data.scenes import (
    COLOURS,
    PATTERNS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scenes,
    World,
    captions,
    render,
)
from swiftmask.recipes.picture_cache import cached as cached_tensors
from swiftmask.recipes.scenes_pictures import DATA_SEED, mosaics
from swiftmask.training.setup import TrainingConfig, step_seed

WORDS = ("a", "and", "on", "background", ",", *SHAPES, *COLOURS, *SIZES, *PATTERNS) + tuple(
    dict.fromkeys(" ".join(RELATIONS).split())
)
"""Every word of a caption, and the comma."""

CAPTION_LENGTH = 24
"""Tokens a caption is padded to; the longest has 21, start and end among them."""

PROMPT_SEED = DATA_SEED + (1 << 43)
"""Captions that are drawn but not learned from (Speed-RL) have seeds from here on."""

_CACHE_SEED = DATA_SEED + (1 << 42)
_ENCODED_TOGETHER = 250
_WORDS_SHOWN = 64
"""Captions in which every word occurs, most likely; they are a cache's mark of its tokenizer."""


def codec_pictures(
    world: World, training: TrainingConfig, resolution: int, step: int, rank: int, num_ranks: int
) -> Tensor:
    """Pictures [B, 3, resolution, resolution] in [0, 1] of one training step; the first half are mosaics, for
    the same reason as those of classes (scenes_pictures.py).
    """
    size = training.batch_size // num_ranks
    first = step_seed(training.seed, step, rank) % DATA_SEED
    images_B3HW = render(world.scenes(DATA_SEED + first + torch.arange(size)), resolution)
    return torch.cat([mosaics(images_B3HW[: size // 2]), images_B3HW[size // 2 :]])


@dataclass(frozen=True, slots=True, eq=False)
class CaptionedCodes:
    """Training pictures as codes, with their captions: int16 `codes_XHW` and ids `captions_XT`."""

    codes_XHW: Tensor
    captions_XT: Tensor

    @classmethod
    def cached(
        cls,
        folder: Path,
        world: World,
        num_pictures: int,
        resolution: int,
        *,
        encode: Callable[[Tensor], Tensor],
        tokenize: Callable[[Sequence[str]], Tensor],
        codec: str,
    ) -> Self:
        """Those in `folder`, after drawing and encoding the ones that are not there yet (picture_cache.py).

        Args:
            encode: pictures [B, 3, resolution, resolution] in [0, 1] to codes [B, H, W].
            tokenize: captions to ids [B, T].
            codec: fingerprint of what encodes.
        """

        def make(first: int, count: int) -> dict[str, Tensor]:
            scenes = world.scenes(_CACHE_SEED + first + torch.arange(count))
            codes_XHW, captions_XT = _encoded(scenes, resolution, encode), tokenize(captions(scenes))
            return {"codes": codes_XHW.to(torch.int16), "captions": captions_XT.to(torch.int16)}

        some = captions(world.scenes(_CACHE_SEED + torch.arange(_WORDS_SHOWN)))
        words = tokenize(some).tolist()  # tells tokenizers apart
        made_by = ("captioned pictures", world, resolution, codec, words)
        found = cached_tensors(folder, num_pictures, make, made_by=made_by)
        return cls(found["codes"], found["captions"])

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes [B, H, W] and caption ids [B, T] (int64) of pictures picked at random."""
        picked_B = torch.randint(len(self.codes_XHW), (count,), generator=generator)
        return self.codes_XHW[picked_B].long(), self.captions_XT[picked_B].long()


@torch.no_grad()
def _encoded(scenes: Scenes, resolution: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
    parts = [
        encode(render(scenes[start : start + _ENCODED_TOGETHER], resolution))
        for start in range(0, len(scenes), _ENCODED_TOGETHER)
    ]
    return torch.cat(parts)
