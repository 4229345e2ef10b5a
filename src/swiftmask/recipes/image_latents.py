"""image-latents: the latents of an image folder and of its mirror images, in one file (data/images).

What a MAR trains and is distilled on. A killed run continues where it stopped.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from swiftmask.core.ranges import check_fields
from swiftmask.data.images import CachedLatents, Decoding, ImageFolder, cache_latents
from swiftmask.models.mar.codec import KLCodec
from swiftmask.models.mar.weights import read_released_codec
from swiftmask.recipes.runs import OnLog, fingerprint, training_device
from swiftmask.training.loop import Progress
from swiftmask.training.processes import processes

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentsRecipe:
    """Images and how they are encoded; they are cropped to the size the codec was made for.

    Attributes:
        images: folder with one subfolder a class.
        codec: weights of MAR's autoencoder, `kl16.ckpt` or its safetensors mirror.
        batch_size: images, of which each is encoded twice.
        max_unreadable: images that may be left out because they cannot be read.
        decoding: what transparent images are placed on, and whether EXIF turns them.
    """

    images: Path | None = None
    codec: Path | None = None
    batch_size: int = 32
    max_unreadable: int = 0
    decoding: Decoding = Decoding()

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self, folder: Path, on_log: OnLog | None = None) -> Path:
        """Encode, or continue, in `folder`; returns it."""
        self.encode(read_released_codec(required(self.codec, "codec", "kl16.ckpt")), folder, on_log)
        return folder

    def encode(self, codec: KLCodec, folder: Path, on_log: OnLog | None = None) -> CachedLatents:
        """The finished cache, in training scale. Of several processes the first encodes, the others wait.

        Errors: ValueError naming the setting, file or folder at fault.
        """
        folder_of_images = required(self.images, "images", "imagenet/train")
        images = ImageFolder.open(folder_of_images, codec.config.resolution, self.decoding)
        codec = codec.to(training_device()).eval()

        def encode_moments(images_B3HW: Tensor) -> Tensor:
            return codec.moments(images_B3HW.to(codec.quant_conv.weight.device))

        with processes().main_process_first():
            index = cache_latents(
                images,
                encode_moments,
                folder,
                encoder=f"kl {fingerprint(codec)}",
                batch_size=self.batch_size,
                max_unreadable=self.max_unreadable,
                on_progress=None if on_log is None else _reported(on_log),
            )
        if processes().is_main_process:
            for line in (*images.passed_over.said(images.root), *index.said(self.decoding)):
                _log.warning(line)
        return CachedLatents.open(folder, scale=codec.config.scale)


def required(path: Path | None, key: str, example: str) -> Path:
    """The path, if it was set. Errors: ValueError saying how to set it."""
    if path is None:
        raise ValueError(f"{key} is not set: add it to the command, as in {key}=/data/{example}")
    return path


def _reported(on_log: OnLog) -> Callable[[int, int], None]:
    """Images done, as progress of a training run."""
    started = time.perf_counter()

    def report(done: int, total: int) -> None:
        on_log(Progress(done, total, time.perf_counter() - started, {"images": done}))

    return report


def recipe() -> LatentsRecipe:
    """`swiftmask train image-latents images=/data/imagenet/train codec=kl16.ckpt`.

    Takes 256x256 images and MAR's released KL-16; ImageNet's latents take 21 GB. Not run on ImageNet yet.
    """
    return LatentsRecipe()
