"""mar-scenes: a small class-conditional MAR on 6x6 continuous tokens, with its codec.

A token is a patch of 2x2 latents: on a CPU four times as many pictures pass through the network as with 12x12
tokens, and 16 channels give the diffusion head more to do.

Three stages, each resumable: the codec (its own recipe), a cache of encoded pictures, the network.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.data.scenes import CLASS_NAMES, NUM_CLASSES, class_attributes
from swiftmask.models.mar import MAR
from swiftmask.models.mar.initialisation import initialise
from swiftmask.models.mar.network import Network, NetworkConfig
from swiftmask.models.mar.objective import MARTrainer, MaskedBatch, all_mask_rates, train_step
from swiftmask.recipes import mar_scenes_codec
from swiftmask.recipes.mar_scenes_codec import CodecRecipe
from swiftmask.recipes.provenance import provenance
from swiftmask.recipes.runs import SCENES_STEPS, fingerprint, run_name
from swiftmask.recipes.scenes_latents import SceneLatents
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import TrainingConfig, step_seed

_PATCH_SIZE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MARRecipe:
    """Sizes and optimisation of the network.

    Attributes:
        guess_weight: of guessing tokens from their context alone.
        num_copies, num_noisy_copies: noisy copies of each masked token in an update, and how many of them are
            very noisy (models/mar/objective.py).
        num_pictures: size of the cache; the network sees each picture several times.
        sampling: defaults written into the model's config.
    """

    codec: CodecRecipe
    network: NetworkConfig
    training: TrainingConfig
    sampling: SamplingOptions
    num_copies: int = 2
    num_noisy_copies: int = 1
    guess_weight: float = 1.0
    num_pictures: int = 60_000
    name: str = "mar-scenes"

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self, folder: Path, on_log: Callable[[Progress], None] | None = None) -> Path:
        """Train everything, or continue, in `folder`; returns `folder/model`, ready for `swiftmask.load`."""
        codec = self.codec.run(folder / "codec", on_log)
        latents = SceneLatents.cached(
            codec,
            folder / "latents",
            num_pictures=self.num_pictures,
            patch_size=self.network.patch_size,
        )
        torch.manual_seed(self.training.seed)
        network = initialise(Network(self.network), class_attributes(torch.arange(NUM_CLASSES)))
        objective = (self.guess_weight, self.num_copies, self.num_noisy_copies)
        trained = train(
            MARTrainer(network, self.guess_weight),
            lambda *place: self.batch(latents, *place),
            train_step,
            self.training,
            folder / "network",
            name=run_name(self.name, network, fingerprint(codec), self.num_pictures, *objective),
            on_log=on_log,
        )
        model = MAR(
            trained.network.eval(),
            codec,
            sampling=self.sampling,
            steps=SCENES_STEPS,
            class_names=CLASS_NAMES,
        )
        codec_training = asdict(self.codec.training)
        facts = provenance(self.name, self.training, pictures=self.num_pictures, codec=codec_training)
        model.save_pretrained(folder / "model", provenance=facts, dtype=torch.float16)
        return folder / "model"

    def batch(self, latents: SceneLatents, step: int, rank: int, num_ranks: int) -> MaskedBatch:
        """The masked batch of one step, a function of the step alone; a mask rate for each picture."""
        generator = torch.Generator().manual_seed(step_seed(self.training.seed, step, rank))
        tokens_BLC, labels_B = latents.draw(self.training.batch_size // num_ranks, generator)
        rates_B = all_mask_rates(len(labels_B), generator)
        return MaskedBatch.draw(
            tokens_BLC,
            labels_B,
            rates_B,
            generator,
            num_copies=self.num_copies,
            num_noisy_copies=self.num_noisy_copies,
        )


def recipe() -> MARRecipe:
    """`swiftmask train mar-scenes`: codec, latents and network, about two hours on one CPU core. Measured
    quality in docs/marval.md.
    """
    codec = mar_scenes_codec.recipe()
    network = NetworkConfig(
        encoder_width=160,
        encoder_depth=3,
        encoder_heads=5,
        decoder_width=160,
        decoder_depth=4,
        decoder_heads=5,
        channels=codec.codec.z_channels * _PATCH_SIZE**2,
        grid=codec.codec.grid // _PATCH_SIZE,
        patch_size=_PATCH_SIZE,
        num_classes=NUM_CLASSES,
        head_width=192,
        head_depth=3,
        buffer_size=8,
        dropout=0.0,
    )
    training = TrainingConfig(
        num_steps=8000,
        batch_size=64,
        learning_rate=2e-3,
        muon_learning_rate=4e-3,
        warmup_steps=100,
        precision="bf16-weights",
        save_every=100,
    )
    # At timestep 999 the error of so small a head, multiplied by 20291, carried chains away (docs/log.md).
    sampling = SamplingOptions(
        guidance=2.0, temperature=1.0, denoising_steps=100, sampler="ancestral", noisiest_timestep=980
    )
    return MARRecipe(codec=codec, network=network, training=training, sampling=sampling)
