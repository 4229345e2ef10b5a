"""The tokenizer of meissonic-scenes: diffusers' VQModel, small, turns a 48x48 picture into 12x12 codes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.core.ranges import check_fields
from swiftmask.core.vq_codec import VQCodec, VQConfig, build_vq_codec
from swiftmask.recipes.captioned_scenes import World, codec_pictures
from swiftmask.recipes.runs import run_name
from swiftmask.recipes.vq_codec_training import CodecTrainer, pruned, train_step
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerRecipe:
    """Sizes and optimisation of the tokenizer.

    Attributes:
        codec: trained with this many codes ...
        num_codes: ... of which so many are kept.
        resolution: height and width of the pictures in pixels.
        world: what they show.

    Errors: ValueError for a resolution that does not divide into codes, or more codes kept than there are.
    """

    codec: VQConfig
    num_codes: int
    resolution: int
    world: World = World()
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(num_steps=2000, batch_size=24, save_every=100)
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.resolution % self.codec.downscale:
            raise ValueError(
                f"resolution must be a multiple of {self.codec.downscale}, got {self.resolution}"
            )
        if not 1 <= self.num_codes <= self.codec.num_vq_embeddings:
            raise ValueError(
                f"num_codes must lie in 1..{self.codec.num_vq_embeddings} (codec.num_vq_embeddings), "
                f"got {self.num_codes}"
            )

    def run(self, folder: Path, on_log: Callable[[Progress], None] | None = None) -> VQCodec:
        """Train, or continue, in `folder`; returns the averaged codec in evaluation mode."""
        torch.manual_seed(self.training.seed)
        trainer = CodecTrainer(build_vq_codec(self.codec))
        trained = train(
            trainer,
            self.batches,
            train_step,
            self.training,
            folder,
            name=run_name("meissonic-scenes-tokenizer", trainer, self.codec, self.resolution, self.world),
            on_log=on_log,
        )
        return pruned(trained.codec, trained.running.count_V, self.num_codes)

    def batches(self, step: int, rank: int, num_ranks: int) -> Tensor:
        """Pictures of the step."""
        return codec_pictures(self.world, self.training, self.resolution, step, rank, num_ranks)


def recipe() -> TokenizerRecipe:
    """`swiftmask train meissonic-scenes-tokenizer`: 19 minutes on one CPU core.

    Sizes, rates and pruning are those of maskgit-scenes-tokenizer; this codec has no attention.
    """
    codec = VQConfig(
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=64,
        num_vq_embeddings=512,
        vq_embed_dim=16,
        norm_num_groups=8,
    )
    return TokenizerRecipe(codec=codec, num_codes=192, resolution=48)
