"""Noise as an argument: one stream per image, so a picture depends on its seed and never on its batch.

`SeededNoise` is a counter-based generator: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011) written in int64 tensor operations. A draw is a pure function of (image seed, draw
number, position), so there is no per-image generator to loop over, nothing to synchronise, the numbers
agree on every device, and a step consumes the same randomness whether its features were computed or
approximated (paired comparisons).

`ReplayNoise` feeds recorded uniforms and reproduces the Gumbel-max arithmetic of the reference samplers.
`ShapesOfNoise` has no numbers at all, for decodes of which only the shapes matter.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def philox_4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """Ten Philox rounds on int64 tensors that hold unsigned 32-bit words; broadcasts. Returns four word
    tensors.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def uniform_of(words: Tensor) -> Tensor:
    """Random 32-bit words to float32 in the open interval (0, 1).

    23 bits of each: with 24, the largest would round to 1, whose Gumbel noise is infinite.
    """
    return ((words >> 9).float() + 0.5) * 2.0**-23


def gumbel_of(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log u) of uniforms in (0, 1), in their dtype."""
    return -(-uniform.log()).log()


class SeededNoise:
    """Draws for a batch of images, one stream each.

    Args:
        seeds: one non-negative integer below 2**63 per image.
        num_tokens: length L of the canvas.
        device: where the draws are made.
    """

    def __init__(self, seeds: Sequence[int], num_tokens: int, device: torch.device | str = "cpu") -> None:
        seeds_B = torch.tensor([int(seed) for seed in seeds], dtype=torch.int64).to(device)
        self._key = (seeds_B & _LOW)[:, None, None], ((seeds_B >> 32) & _LOW)[:, None, None]
        self._num_tokens = num_tokens
        self._device = device
        self._num_draws = 0

    def _uniform(self, positions_BM: Tensor, width: int) -> Tensor:
        """Uniforms in (0, 1), a function of image, draw and position: float32 [B, M, width]."""
        self._num_draws += 1
        block = torch.arange((width + 3) // 4, device=self._device)[None, None, :]
        zero = torch.zeros_like(block)
        words = philox_4x32((positions_BM[..., None], block, zero + self._num_draws, zero), self._key)
        return uniform_of(torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(2)[..., :width])

    def categorical(self, probs_BMV: Tensor, positions_BM: Tensor) -> Tensor:
        """One code per position by inverting the cumulative distribution: one uniform each, int64 [B, M]."""
        cumulative_BMV = probs_BMV.cumsum(-1)
        threshold_BM1 = self._uniform(positions_BM, 1) * cumulative_BMV[..., -1:]
        return torch.searchsorted(cumulative_BMV, threshold_BM1)[..., 0].clamp(max=probs_BMV.shape[-1] - 1)

    def gumbel(self, positions_BM: Tensor) -> Tensor:
        """Standard Gumbel noise, float32 [B, M]."""
        return gumbel_of(self._uniform(positions_BM, 1)[..., 0])

    def permutation(self, num_tokens: int) -> Tensor:
        """A random order of the positions of each image, int64 [B, L]."""
        if num_tokens != self._num_tokens:
            raise ValueError(f"this noise covers {self._num_tokens} positions, asked to permute {num_tokens}")
        every_1L = torch.arange(num_tokens, device=self._device)[None]
        return self._uniform(every_1L, 1)[..., 0].argsort(dim=1)

    def normal(self, positions_BM: Tensor, channels: int) -> Tensor:
        """Standard normal noise by Box-Muller, float32 [B, M, channels]."""
        radius, angle = self._uniform(positions_BM, 2 * channels).chunk(2, dim=-1)
        return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


class ReplayNoise:
    """Feeds draws recorded from a reference sampler, in call order, all positions at once.

    Args:
        draws: uniforms [B, L, V] for `categorical` and [B, L] for `gumbel`, an order [B, L] for
            `permutation`, and normals [B, L, C] for `normal`.
    """

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self._draws = iter(draws)

    def _next(self, dims: int) -> Tensor:
        draw = next(self._draws, None)
        if draw is None or draw.ndim != dims:
            got = "no draw is left" if draw is None else f"the recorded one has shape {tuple(draw.shape)}"
            raise ValueError(f"replay expected a draw with {dims} axes, but {got}")
        return draw

    def categorical(self, probs_BMV: Tensor, positions_BM: Tensor) -> Tensor:
        """argmax(log p + gumbel(u)) with the recorded uniforms."""
        index_BMV = positions_BM[..., None].expand_as(probs_BMV)
        return (probs_BMV.log() + gumbel_of(self._next(3).gather(1, index_BMV))).argmax(-1)

    def gumbel(self, positions_BM: Tensor) -> Tensor:
        """Gumbel noise of the recorded uniforms, in their dtype."""
        return gumbel_of(self._next(2).gather(1, positions_BM))

    def permutation(self, num_tokens: int) -> Tensor:
        """The recorded order."""
        return self._next(2)[:, :num_tokens]

    def normal(self, positions_BM: Tensor, channels: int) -> Tensor:
        """The recorded normals."""
        return self._next(3).gather(1, positions_BM[..., None].expand(-1, -1, channels))


class ShapesOfNoise:
    """Draws of the right shape and no value, on the meta device: counting operations asks for no more."""

    def categorical(self, probs_BMV: Tensor, positions_BM: Tensor) -> Tensor:
        """int64 [B, M]"""
        return torch.empty_like(positions_BM, device="meta")

    def gumbel(self, positions_BM: Tensor) -> Tensor:
        """float32 [B, M]"""
        return torch.empty(positions_BM.shape, device="meta")

    def permutation(self, num_tokens: int) -> Tensor:
        """int64 [1, L]: of one image."""
        return torch.empty((1, num_tokens), dtype=torch.int64, device="meta")

    def normal(self, positions_BM: Tensor, channels: int) -> Tensor:
        """float32 [B, M, channels]"""
        return torch.empty((*positions_BM.shape, channels), device="meta")
