"""The tokenizer of maskgit-scenes: a VQGAN that turns a 64x64 picture, read at 48x48, into 12x12 codes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.data.scenes import NUM_CLASSES, class_scenes, render
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.tokenizer_training import TokenizerTrainer, train_step
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import TrainingConfig, step_seed

DATA_SEED = 1 << 40
"""Training pictures have seeds from here on; evaluation references lie below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerRecipe:
    """Sizes and optimisation of the tokenizer."""

    codec: VQGANConfig
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(num_steps=1400, batch_size=48, save_every=100)
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
        return trained.codec.eval()

    def batches(self, step: int, rank: int, num_ranks: int) -> Tensor:
        """Class pictures [B, 3, 48, 48] of the step, drawn at the codec's own resolution."""
        size = self.training.batch_size // num_ranks
        first = step_seed(self.training.seed, step, rank) % DATA_SEED
        seeds_B = DATA_SEED + first + torch.arange(size)
        return render(class_scenes(seeds_B % NUM_CLASSES, seeds_B), self.codec.resolution)


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
    )
    return TokenizerRecipe(codec=codec)
