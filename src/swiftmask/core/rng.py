"""Noise as an argument: one stream per image, so an image depends on its seed and never on its batch.

`SeededNoise` is a counter-based generator: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011) in int64 tensor operations. A number is a pure function of (image seed, draw, position),
so there is no per-image generator to loop over and nothing to synchronise, and the numbers agree on every
device. A step consumes the same numbers whether its features were computed or approximated (paired
comparisons). Philox takes about 80 kernels, so one call makes the numbers of many draws at every position; a
draw is then a gather.

`ReplayNoise` feeds recorded uniforms and reproduces the Gumbel-max arithmetic of the reference samplers.
`ShapesOfNoise` has shapes and no numbers, for decodes that are only counted.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NUM_SEEDS = 2**64
"""Seeds are 0 to NUM_SEEDS - 1: Philox's key has two 32-bit words."""

_LOW = 0xFFFFFFFF

_DRAWS_TOGETHER = 32
"""Draws that one Philox call covers: those of 16 steps, of a token and a choice each."""

_MOST_NUMBERS = 2**22
"""Numbers that one Philox call makes at most; its int64 temporaries then stay below 320 MB."""

_MOST_CHANNELS = 32
"""Wider draws are made at the asked positions alone: a diffusion head's 100 steps read 1600 numbers at a few
positions, and a table would hold them for all.
"""


def philox_4x32(counter: Tensor, round_keys: Tensor) -> Tensor:
    """Ten Philox rounds: four random words [4, ...] of a counter [4, ...].

    All are int64 tensors of unsigned 32-bit words.

    Args:
        round_keys: [10, 2, ...], broadcast against the counter's trailing axes (see `round_keys_of`).
    """
    even, odd = counter[0::2], counter[1::2]
    for key in round_keys:
        product = torch.stack([even[1] * 0xCD9E8D57, even[0] * 0xD2511F53])
        even, odd = ((product >> 32) ^ odd ^ key) & _LOW, product  # bits of `odd` above 32 are masked above
    return torch.stack([even, odd & _LOW], dim=1).flatten(0, 1)


def round_keys_of(seeds: Sequence[int]) -> Tensor:
    """The keys of Philox's ten rounds for each seed: int64 [10, 2, B] on the CPU.

    Errors: ValueError for a seed outside 0 to 2**64 - 1.
    """
    if wrong := [seed for seed in seeds if not 0 <= seed < NUM_SEEDS]:
        raise ValueError(f"seeds must be between 0 and 2**64 - 1, got {wrong[0]}")
    key_2B = torch.tensor([[seed & _LOW for seed in seeds], [seed >> 32 for seed in seeds]])
    added_2 = torch.tensor([0x9E3779B9, 0xBB67AE85])
    return (key_2B + torch.arange(10)[:, None, None] * added_2[:, None]) & _LOW


def uniform_of(words: Tensor) -> Tensor:
    """Random 32-bit words to float32 in the open interval (0, 1).

    23 bits of each: with 24, the largest would round to 1, whose Gumbel noise is infinite.
    """
    return ((words >> 9).float() + 0.5) * 2.0**-23


def gumbel_of(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise -log(-log u) of uniforms in (0, 1), in their dtype."""
    return -(-uniform.log()).log()


def normal_of(uniform_XE: Tensor) -> Tensor:
    """Standard normal noise [..., E] of uniforms [..., E] in (0, 1), for an even E (Box and Muller, 1958).

    Each pair of uniforms gives two normals, the cosine's in the first half and the sine's in the second.
    """
    first, second = uniform_XE.chunk(2, dim=-1)
    radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=-1)


class SeededNoise:
    """Draws for a batch of images, one stream each.

    Args:
        seeds: one per image, 0 to 2**64 - 1.
        num_tokens: length L of the canvas.
        device: where the draws are made. Nothing is copied there after construction.
    """

    def __init__(self, seeds: Sequence[int], num_tokens: int, device: torch.device | str = "cpu") -> None:
        self._keys = round_keys_of([int(seed) for seed in seeds])[:, :, None, :, None, None].to(device)
        self._num_images = len(seeds)
        self._num_tokens = num_tokens
        self._device = device
        self._num_draws = 0
        self._tables: dict[str, tuple[range, Tensor]] = {}

    def categorical(self, probs_BMV: Tensor, positions_BM: Tensor) -> Tensor:
        """One code per position by inverting the cumulative distribution: one uniform each, int64 [B, M]."""
        uniform_BM = self._one_number()[0].gather(1, positions_BM)
        cumulative_BMV = probs_BMV.cumsum(-1)
        threshold_BM1 = uniform_BM[..., None] * cumulative_BMV[..., -1:]
        return torch.searchsorted(cumulative_BMV, threshold_BM1)[..., 0].clamp(max=probs_BMV.shape[-1] - 1)

    def gumbel(self, positions_BM: Tensor) -> Tensor:
        """Standard Gumbel noise, float32 [B, M]."""
        return self._one_number()[1].gather(1, positions_BM)

    def gumbel_per_code(self, positions_BM: Tensor, num_codes: int) -> Tensor:
        """Standard Gumbel noise for every code at every position, float32 [B, M, V]."""
        return gumbel_of(self._uniforms(self._next_draw(), positions_BM, num_codes)[0])

    def permutation(self, num_tokens: int) -> Tensor:
        """A random order of the positions of each image, int64 [B, L]."""
        if num_tokens != self._num_tokens:
            raise ValueError(f"this noise covers {self._num_tokens} positions, asked to permute {num_tokens}")
        return self._uniforms(self._next_draw(), self._every_position(), 1)[0, ..., 0].argsort(dim=1)

    def normal(self, positions_BM: Tensor, channels: int) -> Tensor:
        """Standard normal noise, float32 [B, M, channels]."""
        width = channels + channels % 2
        if channels > _MOST_CHANNELS:
            return normal_of(self._uniforms(self._next_draw(), positions_BM, width)[0])[..., :channels]
        row_BLC = self._row(
            f"normal {channels}",
            width,
            lambda draws: normal_of(self._uniforms(draws, self._every_position(), width))[..., :channels],
        )
        return row_BLC.gather(1, positions_BM[..., None].expand(-1, -1, channels))

    def _one_number(self) -> Tensor:
        """The next draw's uniforms, and their Gumbel noise, at every position: float32 [2, B, L]."""

        def make(draws: range) -> Tensor:
            uniform_KBL = self._uniforms(draws, self._every_position(), 1)[..., 0]
            return torch.stack([uniform_KBL, gumbel_of(uniform_KBL)], dim=1)

        return self._row("one number", 1, make)

    def _row(self, name: str, width: int, make: Callable[[range], Tensor]) -> Tensor:
        """The next draw's row of a table, which is made for the draws to come where it has none."""
        draw = self._next_draw()[0]
        draws, table_KBL = self._tables.get(name, (range(0), None))
        if table_KBL is None or draw not in draws:
            fitting = _MOST_NUMBERS // (self._num_images * self._num_tokens * width)
            draws = range(draw, draw + max(1, min(fitting, _DRAWS_TOGETHER)))
            table_KBL = make(draws)
            self._tables[name] = draws, table_KBL
        return table_KBL[draw - draws.start]

    def _next_draw(self) -> range:
        """The next draw's number, alone in its range."""
        self._num_draws += 1
        return range(self._num_draws, self._num_draws + 1)

    def _every_position(self) -> Tensor:
        return torch.arange(self._num_tokens, device=self._device)[None]

    def _uniforms(self, draws: range, positions_BM: Tensor, width: int) -> Tensor:
        """Uniforms in (0, 1), functions of image, draw and position: float32 [K, B, M, width].

        Philox's counter is (position, block of four channels, draw, 0).
        """
        draw = torch.arange(draws.start, draws.stop, device=self._device)[:, None, None, None]
        block = torch.arange((width + 3) // 4, device=self._device)
        fitting = _MOST_NUMBERS // (len(draws) * self._num_images * positions_BM.shape[-1])
        parts = []
        for some in block.split(max(1, fitting)):
            axes = torch.broadcast_tensors(positions_BM[..., None], some, draw, torch.zeros_like(some))
            words = philox_4x32(torch.stack(axes), self._keys)[:width]
            parts.append(uniform_of(words.movedim(0, -1).flatten(-2)))
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))[..., :width]


class ReplayNoise:
    """Feeds draws recorded from a reference sampler, in call order, all positions at once.

    Args:
        draws: uniforms [B, L, V] for `categorical` and `gumbel_per_code`, [B, L] for `gumbel`, an order
            [B, L] for `permutation`, and normals [B, L, C] for `normal`.
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
        return (probs_BMV.log() + self.gumbel_per_code(positions_BM, probs_BMV.shape[-1])).argmax(-1)

    def gumbel(self, positions_BM: Tensor) -> Tensor:
        """Gumbel noise of the recorded uniforms, in their dtype."""
        return gumbel_of(self._next(2).gather(1, positions_BM))

    def gumbel_per_code(self, positions_BM: Tensor, num_codes: int) -> Tensor:
        """Gumbel noise of the recorded uniforms of `categorical`, in their dtype."""
        return gumbel_of(self._next(3).gather(1, positions_BM[..., None].expand(-1, -1, num_codes)))

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

    def gumbel_per_code(self, positions_BM: Tensor, num_codes: int) -> Tensor:
        """float32 [B, M, V]"""
        return torch.empty((*positions_BM.shape, num_codes), device="meta")

    def permutation(self, num_tokens: int) -> Tensor:
        """int64 [1, L]: of one image."""
        return torch.empty((1, num_tokens), dtype=torch.int64, device="meta")

    def normal(self, positions_BM: Tensor, channels: int) -> Tensor:
        """float32 [B, M, channels]"""
        return torch.empty((*positions_BM.shape, channels), device="meta")
