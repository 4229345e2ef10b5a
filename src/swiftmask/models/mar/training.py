"""Training MAR on any encoded images with classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.trainable import Subject, Trainable, require_same
from swiftmask.models.mar.codec import Posterior
from swiftmask.models.mar.generator import MAR, to_patches
from swiftmask.models.mar.initialisation import initialise, with_classes
from swiftmask.models.mar.network import Network, NetworkConfig
from swiftmask.models.mar.objective import MARTrainer, MaskedBatch, all_mask_rates, shared_mask_rate
from swiftmask.models.mar.weights import RELEASED


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the network; None takes those of `size`. Encoder and decoder have the same width and heads.

    Attributes:
        head_width, head_depth: of the diffusion MLP.
        patch_size: latents along one side of a token: 2 makes a quarter of the tokens, each of four latents.
    """

    width: int | None = None
    encoder_depth: int | None = None
    decoder_depth: int | None = None
    num_heads: int | None = None
    head_width: int | None = None
    head_depth: int | None = None
    buffer_size: int | None = None
    patch_size: int | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Settings of the loss (objective.py).

    Attributes:
        guess_weight: of guessing tokens from their context alone.
        num_copies, num_noisy_copies: noisy copies of each masked token in an update, and how many of them are
            very noisy.
        mask_rates: "all" draws a share of any size for each image, "high" one of at least 70 % for the whole
            batch, as the released models were trained.
    """

    guess_weight: float = 1.0
    num_copies: int = 2
    num_noisy_copies: int = 1
    mask_rates: Literal["all", "high"] = "all"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_noisy_copies > self.num_copies:
            raise ValueError(
                f"num_noisy_copies must be at most num_copies={self.num_copies}, got {self.num_noisy_copies}"
            )


class MARTask:
    """A network over the latents of a frozen codec.

    Args:
        network: trained in place.
    """

    def __init__(self, network: Network, subject: Subject, objective: Objective) -> None:
        self.trainer = MARTrainer(network, objective.guess_weight)
        self._subject, self._objective = subject, objective

    def batch(self, rows: Tensor, what: Tensor | Sequence[str], generator: torch.Generator) -> MaskedBatch:
        """Latents, sampled from their posterior and masked, of images with their labels."""
        assert isinstance(what, Tensor)
        objective, patch_size = self._objective, self.trainer.network.config.patch_size
        rates = all_mask_rates if objective.mask_rates == "all" else shared_mask_rate
        return MaskedBatch.draw(
            sampled_tokens(rows, self._subject.codec.config.scale, patch_size, generator),
            what,
            rates(len(what), generator),
            generator,
            num_copies=objective.num_copies,
            num_noisy_copies=objective.num_noisy_copies,
        )

    def model(self, trainer: nn.Module, sampling: SamplingOptions, steps: int) -> MAR:
        """The network with the codec that it was trained on."""
        assert isinstance(trainer, MARTrainer)
        subject = self._subject
        return MAR(
            trainer.network, subject.codec, sampling=sampling, steps=steps, class_names=subject.class_names
        )


def sampled_tokens(moments_BEHW: Tensor, scale: float, patch_size: int, generator: torch.Generator) -> Tensor:
    """Tokens [B, L, C], sampled from the posterior of encoded images."""
    posterior = Posterior.of(moments_BEHW)
    noise_BCHW = torch.randn(posterior.mean_BCHW.shape, generator=generator)
    return to_patches(posterior.sample(noise_BCHW) * scale, patch_size)


def fresh(sizes: Sizes, subject: Subject, objective: Objective) -> MARTask:
    """A network whose positions know rows and columns, and its classes what they have in common.

    Errors: ValueError for a grid of latents that does not divide into patches.
    """
    assert sizes.width and sizes.encoder_depth and sizes.decoder_depth and sizes.num_heads
    assert sizes.head_width and sizes.head_depth and sizes.buffer_size and sizes.patch_size
    assert subject.attributes_NA is not None
    patch_size = sizes.patch_size
    if subject.grid % patch_size:
        raise ValueError(
            f"the codec gives {subject.grid}x{subject.grid} latents, which do not divide into patches of "
            f"{patch_size}x{patch_size}: take network.patch_size=1, or another resolution"
        )
    config = NetworkConfig(
        encoder_width=sizes.width,
        encoder_depth=sizes.encoder_depth,
        encoder_heads=sizes.num_heads,
        decoder_width=sizes.width,
        decoder_depth=sizes.decoder_depth,
        decoder_heads=sizes.num_heads,
        channels=subject.codec.config.z_channels * patch_size**2,
        grid=subject.grid // patch_size,
        patch_size=patch_size,
        num_classes=len(subject.class_names),
        head_width=sizes.head_width,
        head_depth=sizes.head_depth,
        buffer_size=sizes.buffer_size,
        dropout=sizes.dropout or 0.0,
    )
    return MARTask(initialise(Network(config), subject.attributes_NA), subject, objective)


def resumed(model: MAR, subject: Subject, objective: Objective) -> MARTask:
    """From a model of the same codec sizes; classes that are not its own get new embeddings."""
    config, network = model.network.config, model.network
    require_same("a grid of", config.grid * config.patch_size, subject.grid)
    channels = subject.codec.config.z_channels * config.patch_size**2
    require_same("channels", config.channels, channels)
    if not subject.has_classes(config.num_classes, model.class_names):
        assert subject.attributes_NA is not None
        network = with_classes(network, subject.attributes_NA)
    return MARTask(network.requires_grad_(), subject, objective)


def _sizes(
    width: int, depths: tuple[int, int], num_heads: int, head: tuple[int, int], *, patch_size: int = 2
) -> Sizes:
    return Sizes(
        width=width,
        encoder_depth=depths[0],
        decoder_depth=depths[1],
        num_heads=num_heads,
        head_width=head[0],
        head_depth=head[1],
        buffer_size=8,
        patch_size=patch_size,
        dropout=0.0,
    )


def _released() -> Sizes:
    sizes = RELEASED["mar-b"]
    return Sizes(
        width=sizes.encoder_width,
        encoder_depth=sizes.encoder_depth,
        decoder_depth=sizes.decoder_depth,
        num_heads=sizes.encoder_heads,
        head_width=sizes.head_width,
        head_depth=sizes.head_depth,
        buffer_size=sizes.buffer_size,
        patch_size=sizes.patch_size,
        dropout=sizes.dropout,
    )


TRAINABLE = Trainable(
    draws="class",
    tokenizers=("kl",),
    sizes={
        "tiny": _sizes(64, (1, 1), 2, (64, 1)),
        "small": _sizes(160, (3, 4), 5, (192, 3)),
        "base": _sizes(512, (8, 8), 8, (768, 4), patch_size=1),
        "released": _released(),
    },
    unset=Sizes(),
    objective=Objective(),
    # At timestep 999 the error of a small head, multiplied by 20291, carried chains away (docs/log.md).
    sampling=SamplingOptions(
        guidance=2.0, temperature=1.0, denoising_steps=100, sampler="ancestral", noisiest_timestep=980
    ),
    fresh=fresh,
    resumed=resumed,
)
