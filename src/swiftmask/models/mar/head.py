"""MAR's token head: a small diffusion model per token (Li et al., arXiv 2406.11838, sections 3.2 and 3.3).

An MLP with adaLN modulation sees one noisy token, a timestep and the backbone's feature of that place. Module
names below `diffloss.net` are those of the released checkpoints.

Sampling does once what the reference repeats at every denoising step. The modulations do not depend on the
noisy token, so they are computed for many steps by one matmul over all blocks; the condition's projection and
the timesteps' embeddings enter there and are computed once. Under guidance there is one chain and two
evaluations of the head; the reference carries a second chain along and throws it away.

In half precision the projections of the noisy token and of the predicted noise run in float32, and so does
the whole head at steps that multiply its error (`PRECISE_GAIN`).
"""

import copy
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from swiftmask.core.protocol import Noise
from swiftmask.core.tokens import guide
from swiftmask.core.transformer import TimeEmbedding
from swiftmask.core.types import Step
from swiftmask.models.mar.cache import WeightsCache
from swiftmask.models.mar.diffusion import NUM_TIMESTEPS, ReverseStep, reverse_chain

TIME_FREQUENCIES = 256

MODULATION_ROWS = 1024
"""Rows (tokens, branches and denoising steps together) whose modulations one matmul computes: enough for a
matmul to run at full speed, few enough for memory (80 MB in MAR-B).
"""

PRECISE_GAIN = 50.0
"""Steps that multiply the head's error by more than this run in float32 whatever the dtype of the weights.

bfloat16 rounds the predicted noise by up to 0.004, which such a step turns into 0.2 standard deviations of a
token. In the reference's 100 steps that is the first one alone, at timestep 999, with a gain of 316.
"""

STEPS_PER_DRAW = 100
"""Denoising steps whose noise is one draw: a constant, so that a draw's number depends on no batch."""


class _ResBlock(nn.Module):
    """h + gate * mlp(norm(h) * scale + shift); `scale` comes with its one already added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, h_XW: Tensor, shift_XW: Tensor, scale_XW: Tensor, gate_XW: Tensor) -> Tensor:
        expand, silu, contract = self.mlp
        hidden_XW = expand(torch.addcmul(shift_XW, self.in_ln(h_XW), scale_XW))
        hidden_XW = silu(hidden_XW) if hidden_XW.requires_grad else F.silu(hidden_XW, inplace=True)
        return torch.addcmul(h_XW, gate_XW, contract(hidden_XW))


class _FinalLayer(nn.Module):
    def __init__(self, width: int, channels_out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, channels_out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, h_XW: Tensor, shift_XW: Tensor, scale_XW: Tensor) -> Tensor:
        return _precise(self.linear, torch.addcmul(shift_XW, self.norm_final(h_XW), scale_XW))


def _precise(linear: nn.Linear, x_XD: Tensor) -> Tensor:
    """A linear layer in float32 at least, autocast or not."""
    dtype = torch.promote_types(linear.weight.dtype, torch.float32)
    with _without_autocast(x_XD.device):
        return F.linear(x_XD.to(dtype), linear.weight.to(dtype), linear.bias.to(dtype))


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """The meta device has no autocast to switch off."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


class HeadNetwork(nn.Module):
    """The diffusion MLP: noise and variance of a noisy token. Everything takes any leading axes.

    Args:
        channels: of a token; twice as many come out.
        context_width: of the backbone's features.
    """

    def __init__(self, *, channels: int, context_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.channels = channels
        self.width = width
        self.time_embed = TimeEmbedding(width, num_frequencies=TIME_FREQUENCIES, hidden_width=width)
        self.cond_embed = nn.Linear(context_width, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(_ResBlock(width) for _ in range(depth))
        self.final_layer = _FinalLayer(width, 2 * channels)
        self._cache = WeightsCache(limit=64)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for index in (0, 2):
            nn.init.normal_(self.time_embed.mlp[index].weight, std=0.02)  # type: ignore[arg-type]
        for linear in [*self._modulation_layers(), self.final_layer.linear]:
            nn.init.zeros_(linear.weight)

    def _apply(self, fn, recurse: bool = True) -> Self:
        self._cache.clear()
        return super()._apply(fn, recurse)

    def forward(self, noisy_XC: Tensor, timesteps_X: Tensor, context_XD: Tensor) -> Tensor:
        """Predicted noise and variance [..., 2C]; leading axes broadcast, as from [X] to [R, X]."""
        context_XW = self.cond_embed(context_XD.to(self.input_proj.weight.dtype))
        return self.predict(noisy_XC, self.modulate(self.embed_time(timesteps_X) + context_XW))

    def embed_time(self, timesteps_X: Tensor) -> Tensor:
        """Embeddings [..., W]; each timestep of training is embedded at most once."""
        if timesteps_X.numel() <= NUM_TIMESTEPS:
            return self.time_embed(timesteps_X)
        every_TW = self.time_embed(torch.arange(NUM_TIMESTEPS, device=timesteps_X.device))
        return F.embedding(timesteps_X, every_TW)

    def modulate(self, embedded_XW: Tensor) -> Tensor:
        """All modulations at once [..., K, W]: shift, scale and gate of each block, shift and scale of the
        final layer. Scales come with their one already added.
        """
        weight_EW, bias_E = self._kept_modulation()
        return F.linear(F.silu(embedded_XW), weight_EW, bias_E).unflatten(-1, (-1, self.width))

    def predict(self, noisy_XC: Tensor, modulation_XKW: Tensor) -> Tensor:
        """Noise and variance, float32 [..., 2C]; modulations may have leading axes that the tokens lack.

        The blocks see rows, all leading axes as one: compiled blocks then take any number of branches, tokens
        and images.
        """
        *leading, _, width = modulation_XKW.shape
        *per_block, shift_YW, scale_YW = modulation_XKW.flatten(0, -3).unbind(-2)
        h_XW = _precise(self.input_proj, noisy_XC).to(modulation_XKW.dtype)
        h_YW = h_XW.expand(*leading, width).flatten(0, -2)
        for index, block in enumerate(self.res_blocks):
            h_YW = block(h_YW, *per_block[3 * index : 3 * index + 3])
        return self.final_layer(h_YW, shift_YW, scale_YW).unflatten(0, leading)

    def predict_precisely(self, noisy_XC: Tensor, timestep: int, context_XD: Tensor) -> Tensor:
        """`forward` at one timestep, in float32 with the weights as they are rounded."""
        twin = copy.copy(self)
        twin._cache = WeightsCache(limit=0)  # what the cache holds belongs to the weights' own dtype
        weights = {name: parameter.float() for name, parameter in self.named_parameters()}
        timesteps_1 = torch.full((1,), timestep, device=noisy_XC.device)
        with _without_autocast(noisy_XC.device):
            return functional_call(twin, weights, (noisy_XC.float(), timesteps_1, context_XD.float()))

    def embed_chain(self, chain: Sequence[ReverseStep]) -> Tensor:
        """Time embeddings of a chain's steps [S, W]; kept while the weights stay and nothing is trained."""
        timesteps = tuple(step.timestep for step in chain)
        return self._remembered(timesteps, lambda: self._embed_timesteps(timesteps))

    def _embed_timesteps(self, timesteps: Sequence[int]) -> Tensor:
        every_T = torch.arange(NUM_TIMESTEPS, device=self.input_proj.weight.device)
        return self.time_embed(torch.stack([every_T[t] for t in timesteps]))  # views: no copy to the device

    def _kept_modulation(self) -> tuple[Tensor, Tensor]:
        return (
            self._remembered("modulation weights", self._joined_weights),
            self._remembered("modulation biases", self._joined_biases),
        )

    def _modulation_layers(self) -> list[nn.Linear]:
        modules = [*self.res_blocks, self.final_layer]
        return [module.adaLN_modulation[1] for module in modules]  # type: ignore[index, misc]

    def _joined_weights(self) -> Tensor:
        return torch.cat([layer.weight for layer in self._modulation_layers()])

    def _joined_biases(self) -> Tensor:
        bias_KW = torch.cat([layer.bias for layer in self._modulation_layers()]).unflatten(
            0, (-1, self.width)
        )
        bias_KW[1::3] += 1  # scale is the second of three, in the final layer of two
        return bias_KW.flatten()

    def _remembered(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        if torch.is_grad_enabled():
            return make()
        kept = self._cache.kept(self)
        if key not in kept:
            kept[key] = make()
            self._cache.keep({key: kept[key]})
        return kept[key]


@dataclass(frozen=True, slots=True)
class DiffusionTokens:
    """Continuous tokens at some positions: they can be sampled, and not scored.

    Attributes:
        context_GBMD: the backbone's features there, conditional branch first; one branch if unguided.
        positions_BM: which canvas positions the rows belong to (the noise streams are addressed by position).
    """

    head: HeadNetwork
    context_GBMD: Tensor
    positions_BM: Tensor
    guidance: float

    def sample(self, noise: Noise, step: Step) -> tuple[Tensor, None]:
        """Tokens, float32 [B, M, C], by the reverse chain of `step.denoising`.

        Temperature multiplies the injected noise; a deterministic chain has none but its start, so there it
        multiplies that. Errors: ValueError if the step says nothing about denoising.
        """
        if step.denoising is None:
            raise ValueError("a diffusion head needs Step.denoising, got None: use the model's own schedule")
        chain = reverse_chain(step.denoising)
        drawn = self._noise(noise, sum(reverse.draws_noise for reverse in chain), step.temperature)
        token_XC = next(drawn)
        if step.denoising.deterministic:
            token_XC = step.temperature * token_XC
        for reverse, predict in zip(chain, self._predictions(chain), strict=True):
            noise_GXC, spread_GXC = predict(token_XC).float().chunk(2, dim=-1)
            fresh_XC = next(drawn) if reverse.draws_noise else None
            token_XC = reverse.advance(token_XC, guide(noise_GXC, self.guidance), spread_GXC[0], fresh_XC)
        return token_XC.unflatten(0, self.positions_BM.shape), None

    def log_prob(self, tokens_BM: Tensor, temperature: float) -> None:
        """None: a diffusion head has no tractable density."""
        return None

    def _predictions(self, chain: Sequence[ReverseStep]) -> Iterator[Callable[[Tensor], Tensor]]:
        """The head at every step: `predict(token_XC) -> predicted_GXE`."""
        rounded = self.head.input_proj.weight.dtype.itemsize < 4
        leading = itertools.takewhile(lambda step: rounded and step.gain > PRECISE_GAIN, chain)
        precise = list(leading)
        for step in precise:
            yield partial(
                self.head.predict_precisely,
                timestep=step.timestep,
                context_XD=self.context_GBMD.flatten(1, 2),
            )
        if others := chain[len(precise) :]:
            for modulation_GXKW in self._modulations(others):
                yield partial(self.head.predict, modulation_XKW=modulation_GXKW)

    def _modulations(self, chain: Sequence[ReverseStep]) -> Iterator[Tensor]:
        """The modulations [G, X, K, W] of every step, computed for several steps together."""
        weight = self.head.input_proj.weight
        context_GXW = self.head.cond_embed(self.context_GBMD.flatten(1, 2).to(weight.dtype))
        steps_together = max(1, MODULATION_ROWS // max(1, context_GXW.shape[0] * context_GXW.shape[1]))
        for time_SW in self.head.embed_chain(chain).split(steps_together):
            yield from self.head.modulate(time_SW[:, None, None] + context_GXW)

    def _noise(self, noise: Noise, num_fresh: int, temperature: float) -> Iterator[Tensor]:
        """The start of a chain [X, C], then what its steps inject [X, C], drawn for many steps together.

        The temperature multiplies what is injected.
        """
        channels, num_draws = self.head.channels, 1 + num_fresh
        for first in range(0, num_draws, STEPS_PER_DRAW):
            count = min(STEPS_PER_DRAW, num_draws - first)
            drawn_XE = noise.normal(self.positions_BM, count * channels).flatten(0, 1)
            drawn_XSC = drawn_XE.unflatten(-1, (count, channels))
            if first == 0:
                yield drawn_XSC[:, 0]
                drawn_XSC = drawn_XSC[:, 1:]
            yield from (temperature * drawn_XSC).unbind(1)
