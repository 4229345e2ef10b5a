"""The diffusion process of MAR's token head (Li et al., arXiv 2406.11838, section 3.3; iDDPM, arXiv
2102.09672).

Cosine schedule of 1000 timesteps, the network predicts the noise and where the variance lies between its two
bounds. Tables are float64; every number is rounded to float32 where it meets a tensor, as in the reference.
Sampling needs none of them on the device: a reverse chain is a tuple of steps that hold Python floats, built
once per `Denoising`.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from swiftmask.core.types import Denoising

NUM_TIMESTEPS = 1000

LAST_DDIM_TIMESTEP = 980
"""DDIM starts here: at 999 an error of the head is multiplied by 20291 (DiSA, arXiv 2505.20297)."""

_HALF_BIN = 1 / 255


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """Forward process over some of the training timesteps; float64 tables with one entry each.

    Attributes:
        timesteps_S: int64, what the head is told (always an index of the training process).
        betas_S: variance added from one entry to the next.
        signal_S: cumulative product of 1 - beta ("alpha bar"); `signal_before_S` is that of the entry before.
        posterior_variance_S: of a token one entry earlier, given the noisy and the clean one.
        posterior_log_variance_S: its first entry (minus infinity) replaced by the second.
        mean_from_clean_S, mean_from_noisy_S: weights of the two tokens in the posterior mean.
    """

    timesteps_S: Tensor
    betas_S: Tensor
    signal_S: Tensor
    signal_before_S: Tensor
    posterior_variance_S: Tensor
    posterior_log_variance_S: Tensor
    mean_from_clean_S: Tensor
    mean_from_noisy_S: Tensor

    @classmethod
    def of(cls, timesteps_S: Tensor, betas_S: Tensor) -> Self:
        signal_S = (1 - betas_S).cumprod(0)
        before_S = torch.cat([signal_S.new_ones(1), signal_S[:-1]])
        variance_S = betas_S * (1 - before_S) / (1 - signal_S)
        after_first = variance_S[1:2] if len(variance_S) > 1 else betas_S
        return cls(
            timesteps_S=timesteps_S,
            betas_S=betas_S,
            signal_S=signal_S,
            signal_before_S=before_S,
            posterior_variance_S=variance_S,
            posterior_log_variance_S=torch.cat([after_first, variance_S[1:]]).log(),
            mean_from_clean_S=betas_S * before_S.sqrt() / (1 - signal_S),
            mean_from_noisy_S=(1 - before_S) * (1 - betas_S).sqrt() / (1 - signal_S),
        )


@functools.cache
def training_process() -> Process:
    """All 1000 timesteps; beta is clipped to 0.999 at the last."""
    place = torch.arange(NUM_TIMESTEPS + 1, dtype=torch.float64) / NUM_TIMESTEPS
    curve = torch.cos((place + 0.008) / 1.008 * math.pi / 2) ** 2
    return Process.of(torch.arange(NUM_TIMESTEPS), (1 - curve[1:] / curve[:-1]).clamp(max=0.999))


def respaced_timesteps(num_steps: int, noisiest: int = NUM_TIMESTEPS - 1) -> list[int]:
    """The reference's ancestral timesteps, ascending: round(999 k / (N - 1)); a single one would be 0."""
    return [round(k * noisiest / max(1, num_steps - 1)) for k in range(num_steps)]


def ddim_timesteps(num_steps: int, noisiest: int = LAST_DDIM_TIMESTEP) -> list[int]:
    """Evenly up to `noisiest`, ascending, none at 0: a chain of N steps gets the N noisiest places
    (arXiv 2305.08891, "trailing").
    """
    return [round(noisiest * (k + 1) / num_steps) for k in range(num_steps)]


def respaced(timesteps: Sequence[int]) -> Process:
    """The process that visits only `timesteps`, with the same signal there."""
    timesteps_S = torch.tensor(timesteps)
    signal_S = training_process().signal_S[timesteps_S]
    before_S = torch.cat([signal_S.new_ones(1), signal_S[:-1]])
    return Process.of(timesteps_S, 1 - signal_S / before_S)


class ReverseStep(Protocol):
    """One step of a reverse chain, from a noisy token to a less noisy one."""

    @property
    def timestep(self) -> int: ...

    @property
    def draws_noise(self) -> bool: ...

    @property
    def gain(self) -> float:
        """What an error of the predicted noise is multiplied by in the next token."""
        ...

    def advance(
        self, noisy_XC: Tensor, noise_XC: Tensor, spread_XC: Tensor, fresh_XC: Tensor | None
    ) -> Tensor:
        """The next token: float32 [X, C].

        Args:
            noisy_XC: the token as it is.
            noise_XC, spread_XC: what the head predicts: the noise in it, and the variance in [-1, 1].
            fresh_XC: noise to inject, already multiplied by the temperature; None where none is drawn.
        """
        ...


@dataclass(frozen=True, slots=True)
class AncestralStep:
    """x <- c1 x0 + c2 x + sigma * fresh, with x0 from the predicted noise (not clipped)."""

    timestep: int
    clean_from_noisy: float
    clean_from_noise: float
    mean_from_clean: float
    mean_from_noisy: float
    log_beta: float
    log_posterior: float
    draws_noise: bool

    @property
    def gain(self) -> float:
        return self.mean_from_clean * self.clean_from_noise

    def advance(
        self, noisy_XC: Tensor, noise_XC: Tensor, spread_XC: Tensor, fresh_XC: Tensor | None
    ) -> Tensor:
        clean_XC = self.clean_from_noisy * noisy_XC - self.clean_from_noise * noise_XC
        mean_XC = self.mean_from_clean * clean_XC + self.mean_from_noisy * noisy_XC
        if fresh_XC is None:
            return mean_XC
        share_XC = (spread_XC + 1) / 2
        log_variance_XC = share_XC * self.log_beta + (1 - share_XC) * self.log_posterior
        return mean_XC + torch.exp(0.5 * log_variance_XC) * fresh_XC


@dataclass(frozen=True, slots=True)
class DDIMStep:
    """x <- a' x0 + s' noise: nothing is injected (arXiv 2010.02502, eq. 12 with eta = 0)."""

    timestep: int
    from_noisy: float
    from_noise: float
    draws_noise: bool = False

    @property
    def gain(self) -> float:
        return abs(self.from_noise)

    def advance(
        self, noisy_XC: Tensor, noise_XC: Tensor, spread_XC: Tensor, fresh_XC: Tensor | None
    ) -> Tensor:
        return self.from_noisy * noisy_XC + self.from_noise * noise_XC


@functools.lru_cache(maxsize=256)
def reverse_chain(denoising: Denoising) -> tuple[ReverseStep, ...]:
    """The steps of a sampler, noisiest first.

    Errors: ValueError for a noisiest timestep there is none of, for more steps than timesteps, or for one
    ancestral step: the reference's respacing would ask the head about pure noise as if it were clean.
    """
    count, noisiest = denoising.num_steps, denoising.noisiest
    if noisiest is None:
        noisiest = LAST_DDIM_TIMESTEP if denoising.deterministic else NUM_TIMESTEPS - 1
    if not 1 <= noisiest < NUM_TIMESTEPS:
        raise ValueError(f"noisiest_timestep must be between 1 and {NUM_TIMESTEPS - 1}, got {noisiest}")
    most = noisiest if denoising.deterministic else noisiest + 1
    if not 1 <= count <= most:
        raise ValueError(f"denoising steps must be between 1 and {most}, got {count}")
    if denoising.deterministic:
        return _ddim_chain(respaced(ddim_timesteps(count, noisiest)))
    if count == 1:
        raise ValueError("ancestral sampling needs at least 2 denoising steps, got 1: use sampler=ddim")
    return ancestral_chain(respaced(respaced_timesteps(count, noisiest)))


def ancestral_chain(process: Process) -> tuple[AncestralStep, ...]:
    """The DDPM sampler with learned variance over `process`, noisiest step first."""
    tables = (
        process.timesteps_S,
        (1 / process.signal_S).sqrt(),
        (1 / process.signal_S - 1).sqrt(),
        process.mean_from_clean_S,
        process.mean_from_noisy_S,
        process.betas_S.log(),
        process.posterior_log_variance_S,
    )
    rows = list(zip(*(table.tolist() for table in tables), strict=True))
    return tuple(AncestralStep(*row, draws_noise=index > 0) for index, row in enumerate(rows))[::-1]


def _ddim_chain(process: Process) -> tuple[DDIMStep, ...]:
    ratio_S = (process.signal_before_S / process.signal_S).sqrt()
    from_noise_S = (1 - process.signal_before_S).sqrt() - ratio_S * (1 - process.signal_S).sqrt()
    tables = (process.timesteps_S, ratio_S, from_noise_S)
    return tuple(DDIMStep(*row) for row in zip(*(table.tolist() for table in tables), strict=True))[::-1]


def add_noise(clean_XC: Tensor, noise_XC: Tensor, timesteps_X: Tensor) -> Tensor:
    """sqrt(signal) x + sqrt(1 - signal) noise at each row's timestep: float32 [..., C]."""
    signal_T = training_process().signal_S
    kept_X1 = _at(signal_T.sqrt(), timesteps_X)
    return kept_X1 * clean_XC + _at((1 - signal_T).sqrt(), timesteps_X) * noise_XC


def noise_error(predicted_XE: Tensor, noise_XC: Tensor) -> Tensor:
    """Squared error of the predicted noise, mean over channels: float32 [...]."""
    predicted_XC = predicted_XE.float()[..., : noise_XC.shape[-1]]
    return (noise_XC - predicted_XC).square().mean(-1)


def variational_bound(
    predicted_XE: Tensor, clean_XC: Tensor, noisy_XC: Tensor, timesteps_X: Tensor
) -> Tensor:
    """The bound's term at each row's timestep, in bits per channel, which trains the variance alone (iDDPM,
    eq. 17): float32 [...]. The predicted noise is held fixed.

    Above t = 0 the divergence of the model's step from the true posterior; at t = 0 the negative
    log-likelihood of the clean token in a bin of 2/255.
    """
    process = training_process()
    noise_XC, spread_XC = predicted_XE.float().chunk(2, dim=-1)
    share_XC = (spread_XC + 1) / 2
    posterior_X1 = _at(process.posterior_log_variance_S, timesteps_X)
    log_variance_XC = share_XC * _at(process.betas_S.log(), timesteps_X) + (1 - share_XC) * posterior_X1
    estimate_XC = (
        _at((1 / process.signal_S).sqrt(), timesteps_X) * noisy_XC
        - _at((1 / process.signal_S - 1).sqrt(), timesteps_X) * noise_XC.detach()
    )
    weight_X1 = _at(process.mean_from_clean_S, timesteps_X)
    shared_XC = _at(process.mean_from_noisy_S, timesteps_X) * noisy_XC
    true_XC, mean_XC = weight_X1 * clean_XC + shared_XC, weight_X1 * estimate_XC + shared_XC
    divergence_XC = 0.5 * (
        log_variance_XC
        - posterior_X1
        - 1
        + torch.exp(posterior_X1 - log_variance_XC)
        + (true_XC - mean_XC).square() * torch.exp(-log_variance_XC)
    )
    likelihood_XC = _binned_log_likelihood(clean_XC, mean_XC, 0.5 * log_variance_XC)
    nats_XC = torch.where(timesteps_X[..., None] == 0, -likelihood_XC, divergence_XC)
    return nats_XC.mean(-1) / math.log(2)


def _binned_log_likelihood(x_XC: Tensor, mean_XC: Tensor, log_std_XC: Tensor) -> Tensor:
    """log of the Gaussian mass in the bin around x; the outermost bins reach to infinity."""
    centred_XC, inverse_XC = x_XC - mean_XC, torch.exp(-log_std_XC)
    below_upper_XC = _normal_cdf(inverse_XC * (centred_XC + _HALF_BIN))
    below_lower_XC = _normal_cdf(inverse_XC * (centred_XC - _HALF_BIN))
    inside_XC = torch.where(x_XC > 0.999, 1 - below_lower_XC, below_upper_XC - below_lower_XC)
    return torch.where(x_XC < -0.999, below_upper_XC, inside_XC).clamp(min=1e-12).log()


def _normal_cdf(u: Tensor) -> Tensor:
    """The reference's tanh approximation of the standard normal distribution function."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))


def _at(table_T: Tensor, timesteps_X: Tensor) -> Tensor:
    """Float32 entries of a float64 table, with an axis for the channels: [..., 1]."""
    return table_T.float().to(timesteps_X.device)[timesteps_X][..., None]
