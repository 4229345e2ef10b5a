"""Encode an image folder once: the moments of every image and of its mirror image in one file.

MAR (arXiv 2406.11838) trains on such a cache, one compressed file per image; here it is one array in half
precision that training maps into memory. Stored unsampled and unscaled, so that training draws from the
posterior anew each time (latents.py).
"""

import hashlib
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from swiftmask.data.images.decode import counted
from swiftmask.data.images.folder import ImageFolder
from swiftmask.data.images.index import (
    DTYPES,
    IMAGE_FACTS,
    IMAGES,
    INDEX,
    MOMENTS,
    CacheIndex,
    ImageFacts,
    create_arrays,
    open_array,
    write_rows,
)

Encode = Callable[[Tensor], Tensor]
"""`encode_moments(images_B3HW) -> moments_BMHW`: float32 pictures in [-1, 1] on the CPU to mean and
log-variance, one after the other along M = 2C, on any device.
"""

_BATCHES_AHEAD = 2
_SETTINGS = ("encoder", "dtype", "image_size", "decoding")


def cache_latents(
    folder: ImageFolder,
    encode_moments: Encode,
    out: str | Path,
    *,
    encoder: str,
    dtype: torch.dtype = torch.float16,
    batch_size: int = 32,
    max_unreadable: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> CacheIndex:
    """Encode what is not encoded yet; a killed run continues where it stopped, with the same numbers.

    Args:
        out: folder of the cache. After every batch it is complete up to there.
        encoder: name of the encoder and its weights; a cache of another one is refused.
        dtype: of the stored moments, float16 or bfloat16.
        max_unreadable: images that may be left out, for good, because they cannot be read; the result lists
            them.
        on_progress: called with images done and in all, first with what was there already.

    Returns: what the cache holds.
    Errors: ValueError naming the file for an image that cannot be read, has changed since it was encoded, or
        has non-finite moments, and for a cache of other images or settings. What was encoded stays.
    """
    out = Path(out).expanduser()
    wanted = _wanted(folder, out, encoder, dtype)
    index = _resume(wanted, folder, out) if (out / INDEX).exists() else _begin(wanted, encode_moments, out)
    report = on_progress or (lambda done, total: None)
    report(index.done, index.num_images)
    for batch in _batches(folder, index.done, batch_size):
        index = _add(index, batch, encode_moments, out, max_unreadable)
        report(index.done, index.num_images)
    return index


@dataclass(frozen=True, slots=True)
class _Image:
    """One file as it was read.

    Attributes:
        pixels_3HW: uint8, or None if it cannot be read; `problem` says why.
    """

    file: str
    pixels_3HW: Tensor | None
    problem: str
    facts: ImageFacts
    changes: tuple[str, ...] = ()


def _wanted(folder: ImageFolder, out: Path, encoder: str, dtype: torch.dtype) -> CacheIndex:
    """The index of a cache not yet begun."""
    if out.resolve().is_relative_to(folder.root.resolve()):
        raise ValueError(f"{out} lies in the image folder {folder.root}: choose a folder outside it")
    names = {kind: name for name, (kind, _) in DTYPES.items()}
    if dtype not in names:
        raise ValueError(f"latents are cached as {' or '.join(DTYPES)}, got {dtype}")
    return CacheIndex(
        encoder=encoder,
        dtype=names[dtype],
        image_size=folder.size,
        num_images=len(folder),
        files=hashlib.sha256("\0".join(folder.files).encode("utf-8", "surrogateescape")).hexdigest(),
        class_names=folder.class_names,
        decoding=folder.decoding.identity,
    )


def _begin(wanted: CacheIndex, encode_moments: Encode, out: Path) -> CacheIndex:
    """Empty arrays; a black picture tells the shape of the moments."""
    black_13HW = torch.zeros(1, 3, wanted.image_size, wanted.image_size)
    shape = tuple(_moments(encode_moments, black_13HW).shape[2:])
    if len(shape) != 3 or shape[0] % 2:
        raise ValueError(f"expected moments [2C, H, W] of each image, mean and log-variance, got {shape}")
    out.mkdir(parents=True, exist_ok=True)
    index = replace(wanted, moments=shape)
    create_arrays(out, index)
    index.write(out)
    return index


def _resume(wanted: CacheIndex, folder: ImageFolder, out: Path) -> CacheIndex:
    """The index in `out`, if it is of these images and settings."""
    found = CacheIndex.read(out)
    _refuse_other_settings(found, wanted, out)
    open_array(out, MOMENTS, DTYPES[found.dtype][1], found.shape)
    _refuse_changed_images(found, folder, out)
    return found


def _refuse_other_settings(found: CacheIndex, wanted: CacheIndex, out: Path) -> None:
    pairs = [(name, getattr(found, name), getattr(wanted, name)) for name in _SETTINGS]
    changes = [f"{name} {then!r} then, {now!r} now" for name, then, now in pairs if then != now]
    if changes:
        raise ValueError(
            f"{out} was begun with other settings ({'; '.join(changes)}): use those, or another folder"
        )
    if found.files != wanted.files:
        raise ValueError(
            f"images were added, removed or renamed since {out} was begun ({found.num_images} then, "
            f"{wanted.num_images} now): restore them, or cache into another folder"
        )


def _refuse_changed_images(index: CacheIndex, folder: ImageFolder, out: Path) -> None:
    """A new date alone is no change: then the contents are compared (a copied folder has new dates)."""
    facts_X = open_array(out, IMAGES, IMAGE_FACTS, (index.num_images,))
    for file, row in zip(folder.files, facts_X[: index.done].tolist(), strict=False):
        facts, path = ImageFacts(*row), folder.root / file
        if not facts.readable:
            continue
        status = path.stat()
        same_date = (status.st_size, status.st_mtime_ns) == (facts.num_bytes, facts.modified_ns)
        if not same_date and zlib.crc32(path.read_bytes()) != facts.checksum:
            raise ValueError(f"{path} has changed since it was encoded into {out}: restore it, or cache anew")


def _batches(folder: ImageFolder, first: int, batch_size: int) -> Iterator[list[_Image]]:
    """Batches of read images, read by threads while the batch before is encoded."""
    ahead: deque[list[Future[_Image]]] = deque()
    with ThreadPoolExecutor() as readers:
        for start in range(first, len(folder), batch_size):
            indices = range(start, min(start + batch_size, len(folder)))
            ahead.append([readers.submit(_read, folder, i) for i in indices])
            if len(ahead) == _BATCHES_AHEAD:
                yield [image.result() for image in ahead.popleft()]
        while ahead:
            yield [image.result() for image in ahead.popleft()]


def _read(folder: ImageFolder, index: int) -> _Image:
    file, facts = folder.files[index], ImageFacts(int(folder.labels_X[index]))
    path = folder.root / file
    try:
        status, content = path.stat(), path.read_bytes()
        pixels_3HW, changes = folder.cropped(content, str(path))
    except OSError as error:
        return _Image(file, None, f"cannot read image {path} ({error.strerror})", facts)
    except ValueError as error:
        return _Image(file, None, str(error), facts)
    facts = ImageFacts(facts.label, status.st_size, status.st_mtime_ns, zlib.crc32(content), True)
    return _Image(file, pixels_3HW, "", facts, changes)


def _add(
    index: CacheIndex, batch: list[_Image], encode_moments: Encode, out: Path, max_unreadable: int
) -> CacheIndex:
    """Encode and store one batch; returns the index that counts it."""
    problems = [image for image in batch if image.pixels_3HW is None]
    unreadable = (*index.unreadable, *(image.file for image in problems))
    if problems and len(unreadable) > max_unreadable:
        raise ValueError(
            f"{problems[0].problem}: repair or replace it, or leave such images out "
            f"(max_unreadable={len(unreadable)}); the first {index.done} are kept in {out}"
        )
    write_rows(out / MOMENTS, index.done, _rows(index, batch, encode_moments))
    write_rows(out / IMAGES, index.done, np.array([image.facts for image in batch], IMAGE_FACTS))
    changed = Counter(index.changed) + Counter(counted([image.changes for image in batch]))
    index = replace(index, done=index.done + len(batch), unreadable=unreadable, changed=dict(changed))
    index.write(out)
    return index


def _rows(index: CacheIndex, batch: list[_Image], encode_moments: Encode) -> np.ndarray:
    """Rows of `moments.npy` for one batch; zeros for what cannot be read."""
    kind, disk_kind = DTYPES[index.dtype]
    rows = np.zeros((len(batch), *index.shape[1:]), disk_kind)
    pixels = {i: image.pixels_3HW for i, image in enumerate(batch) if image.pixels_3HW is not None}
    if not pixels:
        return rows
    moments_B2MHW = _moments(encode_moments, torch.stack([*pixels.values()]).float() / 255)
    if tuple(moments_B2MHW.shape[1:]) != index.shape[1:]:
        raise ValueError(
            f"the encoder gives moments {tuple(moments_B2MHW.shape[2:])}, those in the cache are "
            f"{index.moments}: use {index.encoder}, or another folder"
        )
    stored_B2MHW = moments_B2MHW.to(kind).cpu().contiguous()
    _refuse_non_finite(stored_B2MHW, [batch[i].file for i in pixels], index.dtype)
    rows[[*pixels]] = stored_B2MHW.view(torch.uint16).numpy().view(disk_kind)
    return rows


def _refuse_non_finite(stored_B2MHW: Tensor, files: list[str], dtype: str) -> None:
    for file, finite in zip(files, stored_B2MHW.isfinite().flatten(1).all(dim=1).tolist(), strict=True):
        if not finite:
            raise ValueError(
                f"the moments of image {file} are not finite in {dtype}: encode in float32, or cache as "
                "bfloat16"
            )


@torch.no_grad()
def _moments(encode_moments: Encode, images_B3HW: Tensor) -> Tensor:
    """Moments of pictures in [0, 1] and of their mirror images, [B, 2, 2C, H, W]."""
    both_X3HW = torch.cat([images_B3HW, images_B3HW.flip(-1)])
    return encode_moments(both_X3HW * 2 - 1).unflatten(0, (2, -1)).transpose(0, 1)
