"""The codec of mar-scenes: a KL autoencoder that turns a 64x64 picture, read at 48x48, into 12x12 latents."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from swiftmask.core.ranges import check_fields
from swiftmask.models.mar.codec import KLCodec, KLConfig
from swiftmask.models.mar.codec_training import CodecTrainer, measure_scale, train_step
from swiftmask.recipes.runs import run_name, training_device
from swiftmask.recipes.scenes_pictures import codec_pictures
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import TrainingConfig

_SCALE_BATCHES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecRecipe:
    """Sizes and optimisation of the codec.

    Attributes:
        divergence_weight: of the latents' divergence from the standard normal.
    """

    codec: KLConfig
    divergence_weight: float = 1e-4
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(num_steps=2000, batch_size=24, save_every=100)
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self, folder: Path, on_log: Callable[[Progress], None] | None = None) -> KLCodec:
        """Train, or continue, in `folder`; returns the averaged codec in evaluation mode, its scale set."""
        torch.manual_seed(self.training.seed)
        trainer = CodecTrainer(KLCodec(self.codec), divergence_weight=self.divergence_weight)
        trained = train(
            trainer,
            self.batches,
            train_step,
            self.training,
            folder,
            name=run_name("mar-scenes-codec", trainer, self.codec, self.divergence_weight),
            on_log=on_log,
        )
        unscaled = trained.codec.eval()
        after = self.training.num_steps
        device = training_device()
        pictures = (self.batches(after + i, 0, 1).to(device) for i in range(_SCALE_BATCHES))
        scale = measure_scale(unscaled, pictures)
        codec = KLCodec(replace(self.codec, scale=scale)).eval()
        codec.load_state_dict(unscaled.state_dict())
        return codec

    def batches(self, step: int, rank: int, num_ranks: int) -> Tensor:
        """Pictures of the step at the codec's own resolution."""
        return codec_pictures(self.training, self.codec.resolution, step, rank, num_ranks)


def recipe() -> CodecRecipe:
    """`swiftmask train mar-scenes-codec`: about 15 minutes on two CPU cores."""
    codec = KLConfig(
        ch=32,
        ch_mult=(1, 2, 2),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=48,
        z_channels=4,
        image_size=64,
        num_groups=8,
    )
    return CodecRecipe(codec=codec)
