"""Latents of Scenes pictures for training: encoded once, sampled from their posterior anew at every use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from swiftmask.models.mar.codec import KLCodec, Posterior
from swiftmask.models.mar.generator import to_patches
from swiftmask.recipes.runs import fingerprint
from swiftmask.recipes.scenes_pictures import encoded_pictures


@dataclass(frozen=True, slots=True, eq=False)
class SceneLatents:
    """The moments a codec gives for training pictures.

    Attributes:
        moments_XEHW: float16 [X, 2C, H, W], mean and log-variance.
        labels_X: int64 classes.
        scale: of the codec; multiplies every latent.
    """

    moments_XEHW: Tensor
    labels_X: Tensor
    scale: float
    patch_size: int

    @classmethod
    def cached(cls, codec: KLCodec, folder: Path, *, num_pictures: int, patch_size: int = 1) -> Self:
        """Those in `folder`, after drawing and encoding the ones that are not there yet.

        Args:
            codec: on the CPU.
        """

        def encode(images_B3HW: Tensor) -> Tensor:
            return codec.moments(codec.to_pixels_in(images_B3HW)).half()

        moments_XEHW, labels_X = encoded_pictures(
            folder, num_pictures, codec.config.resolution, encode, made_by=("moments", fingerprint(codec))
        )
        return cls(moments_XEHW, labels_X, codec.config.scale, patch_size)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens [B, L, C] and labels [B] of pictures picked at random."""
        picked_B = torch.randint(len(self.moments_XEHW), (count,), generator=generator)
        posterior = Posterior.of(self.moments_XEHW[picked_B])
        noise_BCHW = torch.randn(posterior.mean_BCHW.shape, generator=generator)
        return to_patches(posterior.sample(noise_BCHW) * self.scale, self.patch_size), self.labels_X[picked_B]
