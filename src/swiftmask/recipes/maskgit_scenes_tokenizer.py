"""The tokenizer of maskgit-scenes: a VQGAN that turns a 64x64 picture, read at 48x48, into 12x12 codes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.data.scenes import NUM_CLASSES, class_scenes, render
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.tokenizer_training import TokenizerTrainer, prune_codebook, train_step
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import TrainingConfig, step_seed

DATA_SEED = 1 << 40
"""Training pictures have seeds from here on; evaluation references lie below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerRecipe:
    """Sizes and optimisation of the tokenizer.

    Attributes:
        codec: trained with this many codes ...
        num_codes: ... of which so many are kept.
    """

    codec: VQGANConfig
    num_codes: int
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(num_steps=2000, batch_size=24, save_every=100)
    )

    def run(self, folder: Path, on_log: Callable[[Progress], None] | None = None) -> VQGAN:
        """Train, or continue, in `folder`; returns the averaged codec in evaluation mode."""
        torch.manual_seed(self.training.seed)
        trained = train(
            TokenizerTrainer(VQGAN(self.codec)),
            self.batches,
            train_step,
            self.training,
            folder,
            name="maskgit-scenes-tokenizer",
            on_log=on_log,
        )
        return prune_codebook(trained.codec.eval(), trained.count_K, self.num_codes)

    def batches(self, step: int, rank: int, num_ranks: int) -> Tensor:
        """Class pictures [B, 3, 48, 48] of the step, at the codec's own resolution; the first half mosaics.

        A mosaic takes each quadrant from another picture, so that neither a group norm nor the attention can
        tell the encoder or the decoder anything about a place that its surroundings do not: without them
        the codes of a flat background differed all over it (docs/log.md).
        """
        size = self.training.batch_size // num_ranks
        first = step_seed(self.training.seed, step, rank) % DATA_SEED
        seeds_B = DATA_SEED + first + torch.arange(size)
        images_B3HW = render(class_scenes(seeds_B % NUM_CLASSES, seeds_B), self.codec.resolution)
        return torch.cat([_mosaics(images_B3HW[: size // 2]), images_B3HW[size // 2 :]])


def _mosaics(images_B3HW: Tensor) -> Tensor:
    """Quadrant q of mosaic i is that of picture i + q."""
    shifted = [images_B3HW.roll(-quadrant, dims=0) for quadrant in range(4)]
    half = images_B3HW.shape[-1] // 2
    top = torch.cat([shifted[0][:, :, :half, :half], shifted[1][:, :, :half, half:]], dim=3)
    bottom = torch.cat([shifted[2][:, :, half:, :half], shifted[3][:, :, half:, half:]], dim=3)
    return torch.cat([top, bottom], dim=2)


def recipe() -> TokenizerRecipe:
    """`swiftmask train maskgit-scenes-tokenizer`: about 12 minutes on two CPU cores."""
    codec = VQGANConfig(
        ch=32,
        ch_mult=(1, 2, 2),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=48,
        z_channels=64,
        n_embed=512,
        embed_dim=16,
        image_size=64,
        num_groups=8,
    )
    return TokenizerRecipe(codec=codec, num_codes=192)
