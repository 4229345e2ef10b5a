"""Training MAR on any encoded images with classes: the diffusion loss of masked tokens (Li et al., arXiv
2406.11838, sections 3.2 and 4).

Upstream masks the same share of every image of a batch, at least 70 %. A share per image says more with
each batch, at a price: the encoder is as long as the least masked image needs, and the other images' rows
are filled up with rows that attention ignores. Shares of all sizes show a small model what neighbours say of
each other, which it did not find out from few known tokens (docs/log.md). Unlike upstream, the head sees
masked tokens alone, and its condition is projected once for all noisy copies of a token.

`initialise` is for small networks trained for an hour instead of a week. Upstream's position tables start at
random with a deviation of 0.02, beside projected tokens ten times as large: for a long time the encoder
cannot tell where a token lies. Here they know rows and columns, and are as large.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.embeddings import (
    attribute_rows,
    attribute_sizes,
    attribute_sums,
    other_attributes,
    other_classes,
)
from swiftmask.core.positions import grid_waves
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.trainable import Subject, Trainable, require_same
from swiftmask.models.mar.codec import Posterior
from swiftmask.models.mar.diffusion import NUM_TIMESTEPS, add_noise, noise_error, variational_bound
from swiftmask.models.mar.generator import MAR, to_patches
from swiftmask.models.mar.network import KnownTokens, Network, NetworkConfig

LABEL_DROP = 0.1
LOWEST_RATE, RATE_DEVIATION = 0.7, 0.25
"""Mask rates are normal around 1 with this deviation, cut off below the lowest and above 1."""

NOISY = (600, 960)
"""Timesteps (the last excluded) at which a noisy copy says little of its token: the network has to read the
others."""


def shared_mask_rate(batch: int, generator: torch.Generator) -> Tensor:
    """One rate for all images of the batch, as upstream, by inverting the distribution function of the
    truncated normal: float32 [B].
    """
    least = 0.5 * (1 + math.erf((LOWEST_RATE - 1) / RATE_DEVIATION / math.sqrt(2)))
    quantile = least + (0.5 - least) * torch.rand(1, generator=generator, dtype=torch.float64)
    rate = (1 + RATE_DEVIATION * torch.special.ndtri(quantile)).clamp(LOWEST_RATE, 1.0)
    return rate.float().expand(batch)


def all_mask_rates(batch: int, generator: torch.Generator) -> Tensor:
    """A rate for each image, of any size: MaskGIT's cosine of a uniform number (arXiv 2202.04200)."""
    return torch.cos(0.5 * math.pi * torch.rand(batch, generator=generator))


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """Everything one update reads; all sizes are known before it starts.

    Attributes:
        tokens_BLC: scaled latents of whole images.
        labels_B, dropped_B: classes, and whose class is withheld (for guidance).
        known_BN: positions the encoder sees, and `present_BN` which of them count (None: all).
        masked_X: the masked tokens, as indices into the B * L tokens of the batch.
        timesteps_RX, noise_RXC: of R noisy copies of every masked token.
    """

    tokens_BLC: Tensor
    labels_B: Tensor
    dropped_B: Tensor
    known_BN: Tensor
    present_BN: Tensor | None
    masked_X: Tensor
    timesteps_RX: Tensor
    noise_RXC: Tensor

    @classmethod
    def draw(
        cls,
        tokens_BLC: Tensor,
        labels_B: Tensor,
        rates_B: Tensor,
        generator: torch.Generator,
        *,
        num_copies: int = 4,
        num_noisy_copies: int = 0,
    ) -> Self:
        """Mask tokens at the given rates, drop labels and draw noise with `generator` (on the CPU).

        Args:
            num_copies: noisy copies of each masked token ("diffusion_batch_mul").
            num_noisy_copies: how many of them have timesteps from `NOISY` alone, the others from all.
        """
        batch, length, channels = tokens_BLC.shape
        order_BL = torch.rand(batch, length, generator=generator).argsort(dim=1)
        num_masked_B1 = (rates_B * length).ceil().long().clamp(1, length)[:, None]
        most_known = length - int(num_masked_B1.min())
        present_BN = torch.arange(most_known) < length - num_masked_B1
        masked_BL = torch.arange(length) < num_masked_B1
        masked_X = (order_BL + length * torch.arange(batch)[:, None])[masked_BL]
        shape = (num_copies, len(masked_X))
        timesteps_RX = torch.randint(NUM_TIMESTEPS, shape, generator=generator)
        if num_noisy_copies:
            noisy_shape = (num_noisy_copies, len(masked_X))
            timesteps_RX[-num_noisy_copies:] = torch.randint(*NOISY, noisy_shape, generator=generator)
        return cls(
            tokens_BLC=tokens_BLC,
            labels_B=labels_B,
            dropped_B=torch.rand(batch, generator=generator) < LABEL_DROP,
            known_BN=order_BL.flip(1)[:, :most_known],
            present_BN=None if present_BN.all() else present_BN,
            masked_X=masked_X,
            timesteps_RX=timesteps_RX,
            noise_RXC=torch.randn(*shape, channels, generator=generator),
        )


class MARTrainer(nn.Module):
    """The network with its loss as `forward`, so that data-parallel wrapping sees one call per step.

    Args:
        guess_weight: of an added loss that upstream has not: the squared error of a linear guess of the clean
            token from the head's condition alone. A head that is shown a noisy copy hardly needs to know what
            the other tokens say, and a small backbone then learns it late (docs/log.md). The guess is left
            behind with the trainer.
    """

    def __init__(self, network: Network, guess_weight: float = 0.0) -> None:
        super().__init__()
        self.network = network
        self.guess = nn.Linear(network.config.decoder_width, network.config.channels)
        self._guess_weight = guess_weight

    def forward(self, batch: MaskedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over masked tokens and copies of the noise error plus the variational bound, and the guess."""
        network = self.network
        vectors_BD = network.class_vectors(batch.labels_B)
        null_BD = network.null_vectors(len(vectors_BD))
        classes_BD = torch.where(batch.dropped_B[:, None], null_BD, vectors_BD)
        known = KnownTokens.at(batch.tokens_BLC, batch.known_BN, batch.present_BN)
        context_XD = network(known, classes_BD).flatten(0, 1)[batch.masked_X]
        clean_XC = batch.tokens_BLC.flatten(0, 1)[batch.masked_X].float()
        noisy_RXC = add_noise(clean_XC, batch.noise_RXC, batch.timesteps_RX)
        predicted_RXE = network.head(noisy_RXC, batch.timesteps_RX, context_XD)
        mse = noise_error(predicted_RXE, batch.noise_RXC).mean()
        bound = variational_bound(predicted_RXE, clean_XC, noisy_RXC, batch.timesteps_RX).mean()
        guess = F.mse_loss(self.guess(context_XD).float(), clean_XC)
        return mse + bound + self._guess_weight * guess, {"mse": mse, "vb": bound, "guess": guess}


_ENCODER_LOUDNESS, _DECODER_LOUDNESS, _HEAD_LOUDNESS = 0.4, 1.0, 0.2
"""Deviations of the position tables: as loud as the tokens beside them, and in the head a reminder."""

_LIKENESS = 0.9
"""Correlation of keys with queries."""

_CLASS_DEVIATION = 0.1
"""Five times that of the buffer rows it is added to: their norm leaves the class in charge."""


@torch.no_grad()
def initialise(network: Network, attributes_NA: Tensor) -> Network:
    """Position tables of encoder, decoder and head that know rows and columns, and classes that are the sum
    of their attributes; in place.

    Args:
        attributes_NA: integers, A for each class, such as its shape and its colour.
    """
    config = network.config
    for table_1TD, loudness in (
        (network.encoder_pos_embed_learned, _ENCODER_LOUDNESS),
        (network.decoder_pos_embed_learned, _DECODER_LOUDNESS),
        (network.diffusion_pos_embed_learned, _HEAD_LOUDNESS),
    ):
        waves_LD = grid_waves(config.grid, table_1TD.shape[-1])
        table_1TD[0, -config.num_tokens :] = waves_LD * (loudness / waves_LD.std())
    for block in (*network.encoder_blocks, *network.decoder_blocks):
        _look_at_the_like(block.attn.qkv.weight)  # type: ignore[union-attr]
    if config.class_attributes:
        network.class_emb.weight.normal_(std=_CLASS_DEVIATION * len(config.class_attributes) ** -0.5)
        network.get_buffer("class_rows").copy_(attribute_rows(attributes_NA))
    else:
        network.class_emb.weight.copy_(_CLASS_DEVIATION * attribute_sums(attributes_NA, config.encoder_width))
    return network


def _look_at_the_like(qkv_ED: Tensor) -> None:
    """Keys that are nearly the queries, so that rows attend to rows like themselves, their neighbours first
    ("mimetic initialisation", Trockman & Kolter, arXiv 2305.09828, section 3).
    """
    query_DD, key_DD, _ = qkv_ED.chunk(3)
    key_DD.mul_((1 - _LIKENESS**2) ** 0.5).add_(query_DD, alpha=_LIKENESS)


@torch.no_grad()
def with_classes(network: Network, attributes_NA: Tensor) -> Network:
    """A copy for other classes, whose embeddings are new."""
    config, state = replace(network.config, num_classes=len(attributes_NA)), network.state_dict()
    own_ND = network.class_vectors(torch.arange(network.config.num_classes).to(network.mask_token.device))
    if config.class_attributes:
        config = replace(config, class_attributes=attribute_sizes(attributes_NA))
        state["class_emb.weight"] = other_attributes(own_ND, config.class_attributes)
        state["class_rows"] = attribute_rows(attributes_NA)
    else:
        state["class_emb.weight"] = other_classes(own_ND, attributes_NA)
    changed = Network(config)
    changed.load_state_dict(state)
    return changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the network; None takes those of `size`. Encoder and decoder have the same width and heads.

    Attributes:
        head_width, head_depth: of the diffusion MLP.
        patch_size: latents along one side of a token: 2 makes a quarter of the tokens, each of four latents.
        composed_classes: whether a class is the sum of a vector for each of its attributes, such as its
            concept and its style, so that a pair which no image shows can be asked for.
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
    composed_classes: bool | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Settings of the loss.

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
        class_attributes=attribute_sizes(subject.attributes_NA) if sizes.composed_classes else (),
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
        composed_classes=False,
    )


TRAINABLE = Trainable(
    draws="class",
    tokenizers=("kl",),
    sizes={
        "tiny": _sizes(64, (1, 1), 2, (64, 1)),
        "small": _sizes(160, (3, 4), 5, (192, 3)),
        "base": _sizes(512, (8, 8), 8, (768, 4), patch_size=1),
        "released": replace(_sizes(768, (12, 12), 12, (1024, 6), patch_size=1), buffer_size=64, dropout=0.1),
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
