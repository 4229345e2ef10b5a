"""MAR's training objective: the diffusion loss of masked tokens (Li et al., arXiv 2406.11838, sections 3.2
and 4).

Upstream masks the same share of every picture of a batch, at least 70 %. A share per picture says more with
each batch, at a price: the encoder is as long as the least masked picture needs, and the other pictures' rows
are filled up with rows that attention ignores. Shares of all sizes show a small model what neighbours say of
each other, which it did not find out from few known tokens (docs/log.md). All are functions that draw rates,
and the rest does not know which.

Unlike upstream, the head sees masked tokens alone, and its condition is projected once for all noisy copies
of a token.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.models.mar.diffusion import NUM_TIMESTEPS, add_noise, noise_error, variational_bound
from swiftmask.models.mar.network import KnownTokens, Network

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
    """A rate for each picture, of any size: MaskGIT's cosine of a uniform number (arXiv 2202.04200)."""
    return torch.cos(0.5 * math.pi * torch.rand(batch, generator=generator))


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """Everything one update reads; all sizes are known before it starts.

    Attributes:
        tokens_BLC: scaled latents of whole pictures.
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
