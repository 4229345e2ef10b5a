"""The tokenizer of maskgit-scenes: a VQGAN that turns a 64x64 picture, read at 48x48, into 12x12 codes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.core.ranges import check_fields
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.tokenizer_training import TokenizerTrainer, prune_codebook, train_step
from swiftmask.recipes.runs import run_name
from swiftmask.recipes.scenes_pictures import codec_pictures
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import TrainingConfig


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

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self, folder: Path, on_log: Callable[[Progress], None] | None = None) -> VQGAN:
        """Train, or continue, in `folder`; returns the averaged codec in evaluation mode."""
        torch.manual_seed(self.training.seed)
        trainer = TokenizerTrainer(VQGAN(self.codec))
        trained = train(
            trainer,
            self.batches,
            train_step,
            self.training,
            folder,
            name=run_name("maskgit-scenes-tokenizer", trainer, self.codec),
            on_log=on_log,
        )
        return prune_codebook(trained.codec.eval(), trained.running.count_V, self.num_codes)

    def batches(self, step: int, rank: int, num_ranks: int) -> Tensor:
        """Pictures of the step at the codec's own resolution."""
        return codec_pictures(self.training, self.codec.resolution, step, rank, num_ranks)


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
