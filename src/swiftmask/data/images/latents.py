"""A latent cache in training: posterior samples of images and mirror images, drawn anew at every use.

MAR (arXiv 2406.11838): image or mirror image with probability 0.5 each, `mean + exp(logvar / 2) eps` with the
log-variance clamped as LDM's autoencoder does (arXiv 2112.10752), times the scale that makes the standard
deviation of latents about 1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from swiftmask.data.images.index import DTYPES, IMAGE_FACTS, IMAGES, MOMENTS, CacheIndex, open_array

_LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True, slots=True, eq=False)
class CachedLatents:
    """A finished cache, mapped into memory: images that could be read, in the order of the folder.

    Attributes:
        labels_X: int64, one per image.
        scale: multiplies every latent (0.2325 for MAR's KL-16).
    """

    index: CacheIndex
    labels_X: Tensor
    scale: float
    _moments: np.memmap
    _rows_X: np.ndarray

    @classmethod
    def open(cls, folder: str | Path, *, scale: float) -> Self:
        """Errors: FileNotFoundError; ValueError if the cache is damaged or unfinished."""
        folder = Path(folder).expanduser()
        index = CacheIndex.read(folder)
        if index.done < index.num_images:
            raise ValueError(
                f"{folder} holds {index.done} of {index.num_images} images: "
                "run cache_latents again to finish it"
            )
        facts_X = open_array(folder, IMAGES, IMAGE_FACTS, (index.num_images,))
        moments = open_array(folder, MOMENTS, DTYPES[index.dtype][1], index.shape)
        rows_X = np.flatnonzero(facts_X["readable"])
        return cls(index, torch.from_numpy(facts_X["label"][rows_X]), scale, moments, rows_X)

    def __len__(self) -> int:
        return len(self._rows_X)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.index.class_names

    def draw(self, indices_B: Tensor, generator: torch.Generator) -> Tensor:
        """Scaled latents, float32 [B, C, H, W] on the CPU: a function of indices and generator state."""
        mirrored_B = torch.rand(len(indices_B), generator=generator) < 0.5
        mean_BCHW, logvar_BCHW = self._read(indices_B, mirrored_B).chunk(2, dim=1)
        eps_BCHW = torch.randn(mean_BCHW.shape, generator=generator)
        return self.scale * (mean_BCHW + (0.5 * logvar_BCHW.clamp(*_LOGVAR_RANGE)).exp() * eps_BCHW)

    def _read(self, indices_B: Tensor, mirrored_B: Tensor) -> Tensor:
        """Moments of images, or of their mirror images, float32 [B, 2C, H, W]."""
        bits = self._moments[self._rows_X[indices_B.numpy()], mirrored_B.long().numpy()].view(np.uint16)
        return torch.from_numpy(np.asarray(bits)).view(DTYPES[self.index.dtype][0]).float()
