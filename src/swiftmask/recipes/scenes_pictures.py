"""Class pictures of Scenes as recipes need them: batches for a codec, and a cache of what a codec made of
them.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.data.scenes import NUM_CLASSES, class_scenes, render
from swiftmask.recipes.picture_cache import cached
from swiftmask.training.setup import TrainingConfig, step_seed

DATA_SEED = 1 << 40
"""Training pictures have seeds from here on; evaluation references lie below."""

_CACHE_SEED = DATA_SEED + (1 << 41)
_ENCODED_TOGETHER = 250


def codec_pictures(training: TrainingConfig, resolution: int, step: int, rank: int, num_ranks: int) -> Tensor:
    """Pictures [B, 3, resolution, resolution] in [0, 1] of one training step; the first half are mosaics.

    A mosaic takes each quadrant from another picture, so that neither a group norm nor the attention can
    tell encoder or decoder anything about a place that its surroundings do not: without mosaics the codes of
    a flat background differed all over it (docs/log.md).
    """
    size = training.batch_size // num_ranks
    first = step_seed(training.seed, step, rank) % DATA_SEED
    seeds_B = DATA_SEED + first + torch.arange(size)
    images_B3HW = render(class_scenes(seeds_B % NUM_CLASSES, seeds_B), resolution)
    return torch.cat([mosaics(images_B3HW[: size // 2]), images_B3HW[size // 2 :]])


def mosaics(images_B3HW: Tensor) -> Tensor:
    """Quadrant q of mosaic i is that of picture i + q."""
    shifted = [images_B3HW.roll(-quadrant, dims=0) for quadrant in range(4)]
    half = images_B3HW.shape[-1] // 2
    top = torch.cat([shifted[0][:, :, :half, :half], shifted[1][:, :, :half, half:]], dim=3)
    bottom = torch.cat([shifted[2][:, :, half:, :half], shifted[3][:, :, half:, half:]], dim=3)
    return torch.cat([top, bottom], dim=2)


def encoded_pictures(
    folder: Path,
    num_pictures: int,
    resolution: int,
    encode: Callable[[Tensor], Tensor],
    *,
    made_by: tuple[object, ...],
) -> tuple[Tensor, Tensor]:
    """What `encode` makes of training pictures, and their labels, from `folder` (picture_cache.py).

    Args:
        encode: pictures [B, 3, resolution, resolution] in [0, 1] to rows, in the dtype they are kept in.
        made_by: what decides what `encode` gives, such as the codec's fingerprint.
    """

    def make(first: int, count: int) -> dict[str, Tensor]:
        return _encoded(_CACHE_SEED + first + torch.arange(count), resolution, encode)

    found = cached(folder, num_pictures, make, made_by=("class pictures", resolution, *made_by))
    return found["encoded"], found["labels"]


@torch.no_grad()
def _encoded(seeds_X: Tensor, resolution: int, encode: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    labels_X = seeds_X % NUM_CLASSES
    pairs = zip(labels_X.split(_ENCODED_TOGETHER), seeds_X.split(_ENCODED_TOGETHER), strict=True)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = [encode(render(class_scenes(labels, seeds), resolution)) for labels, seeds in pairs]
    return {"encoded": torch.cat(encoded), "labels": labels_X}
