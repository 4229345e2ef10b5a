"""Noise: the published Philox numbers, independence of batch, and the right distributions."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from swiftmask.core import rng
from swiftmask.core.protocol import Noise
from swiftmask.core.rng import (
    ReplayNoise,
    SeededNoise,
    ShapesOfNoise,
    gumbel_of,
    normal_of,
    philox_4x32,
    round_keys_of,
    uniform_of,
)

L = 64
DRAWS: dict[str, Callable[[Noise, Tensor], Tensor]] = {
    "categorical": lambda noise, at: noise.categorical(
        torch.linspace(1, 2, 11, device=at.device).expand(*at.shape, 11) / 16.5, at
    ),
    "gumbel": lambda noise, at: noise.gumbel(at),
    "permutation": lambda noise, at: noise.permutation(L),
    "gumbel_per_code": lambda noise, at: noise.gumbel_per_code(at, 9),
    "normal": lambda noise, at: noise.normal(at, 3),
    "wide normal": lambda noise, at: noise.normal(at, 40),
}


def _everywhere(batch: int, length: int = L) -> Tensor:
    return torch.arange(length).expand(batch, length)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    """The known-answer vectors of Random123 for philox4x32-10."""
    counter_4 = torch.tensor([int(word, 16) for word in counter.split()])
    low, high = (int(word, 16) for word in key.split())
    round_keys = round_keys_of([high << 32 | low])[..., 0]
    assert [f"{int(word):08x}" for word in philox_4x32(counter_4, round_keys)] == expected.split()


def _uniform(seed: int, draw: int, position: int, channel: int = 0) -> float:
    """The number itself, from Python integers: what any table of numbers has to agree with."""
    c0, c1, c2, c3 = position, channel // 4, draw, 0
    k0, k1 = seed % 2**32, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return ((c0, c1, c2, c3)[channel % 4] // 2**9 + 0.5) / 2**23


def _uniforms(seeds: list[int], draw: int, positions_BM: Tensor, width: int) -> Tensor:
    """[B, M, width]"""
    return torch.tensor(
        [
            [[_uniform(seed, draw, position, channel) for channel in range(width)] for position in positions]
            for seed, positions in zip(seeds, positions_BM.tolist(), strict=True)
        ]
    )


def test_every_kind_of_draw_is_the_formula_of_seed_draw_and_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other draws lie between, and however many draws one Philox call covers."""
    seeds, positions_BM = [3, 2**40 + 5, 2**64 - 1], torch.tensor([[7, 0], [3, 15], [1, 2]])
    for draws_together, most_numbers in ((32, 2**22), (3, 2**22), (32, 100), (32, 1)):
        monkeypatch.setattr(rng, "_DRAWS_TOGETHER", draws_together)
        monkeypatch.setattr(rng, "_MOST_NUMBERS", most_numbers)
        noise = SeededNoise(seeds, 16)
        even_BMV = torch.full((3, 2, 1000), 1e-3, dtype=torch.float64)
        for draw in range(1, 40, 6):
            u_BM = _uniforms(seeds, draw, positions_BM, 1)[..., 0]
            code_BM = noise.categorical(even_BMV, positions_BM)
            assert torch.equal(code_BM, torch.searchsorted(even_BMV[0, 0].cumsum(0), u_BM.double()))
            u_BM = _uniforms(seeds, draw + 1, positions_BM, 1)[..., 0]
            assert torch.equal(noise.gumbel(positions_BM), gumbel_of(u_BM))
            u_BL = _uniforms(seeds, draw + 2, torch.arange(16).expand(3, 16), 1)[..., 0]
            assert torch.equal(noise.permutation(16), u_BL.argsort(dim=1))
            for step, channels in ((3, 6), (4, 40)):
                u_BME = _uniforms(seeds, draw + step, positions_BM, channels)
                found_BMC = noise.normal(positions_BM, channels)
                torch.testing.assert_close(found_BMC, normal_of(u_BME), rtol=1e-6, atol=1e-6)
            u_BMV = _uniforms(seeds, draw + 5, positions_BM, 9)
            assert torch.equal(noise.gumbel_per_code(positions_BM, 9), gumbel_of(u_BMV))


class _Kernels(TorchDispatchMode):
    """Counts the operations that launch a kernel: those that are no views of their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("length", [144, 1024, 4096])
def test_the_noise_of_a_step_takes_few_kernels(length: int) -> None:
    """A token and a choice at every masked position, for 16 steps: the Philox call shared out among them."""
    positions_BM = torch.arange(length, device="meta").expand(2, length)
    probs_BMV = torch.empty(2, length, 64, device="meta")
    noise, counts = SeededNoise([1, 2], length, "meta"), []
    for _ in range(16):
        with _Kernels() as kernels:
            noise.categorical(probs_BMV, positions_BM)
            noise.gumbel(positions_BM)
        assert not any("lift_fresh" in name for name in kernels.names), "no tensor is made on the host"
        counts.append(len(kernels.names))
    assert max(counts[1:]) <= 6
    assert sum(counts) <= 16 * 12


def test_one_philox_call_is_bounded_in_memory() -> None:
    """64 images of 4096 tokens: a table of so many numbers, not of the whole decode's."""
    noise = SeededNoise(range(64), 4096, "meta")
    with _Largest() as largest:
        noise.gumbel(torch.zeros(64, 1, dtype=torch.int64, device="meta"))
        noise.normal(torch.zeros(64, 64, dtype=torch.int64, device="meta"), 1600)
    assert largest.numbers <= 4 * 2**22


class _Largest(TorchDispatchMode):
    """The most numbers of any int64 result."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.int64 and not func.is_view:
            self.numbers = max(self.numbers, result.numel())
        return result


def test_seeds_have_64_bits() -> None:
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=f"between 0 and 2\\*\\*64 - 1, got {seed}"):
            SeededNoise([0, seed], L)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_an_image_has_its_own_stream(draw: Callable[[SeededNoise, Tensor], Tensor]) -> None:
    """The same numbers alone, in another order, and in another batch; also for large seeds."""
    seeds = [3, 0, 2**40 + 3, 2**64 - 1]
    together = SeededNoise(seeds, L)
    draws = [draw(together, _everywhere(4)) for _ in range(3)]
    for row, seed in enumerate(seeds):
        alone = SeededNoise([seed], L)
        assert all(torch.equal(draw(alone, _everywhere(1))[0], drawn[row]) for drawn in draws)
    assert len({tuple(drawn[row].flatten().tolist()) for drawn in draws for row in range(4)}) == 12


@pytest.mark.parametrize("name", ["categorical", "gumbel", "gumbel_per_code", "normal", "wide normal"])
def test_a_position_has_its_own_number(name: str) -> None:
    """Asking for fewer positions, or in another order, changes none of the numbers."""
    everywhere = DRAWS[name](SeededNoise([1, 2], L), _everywhere(2))
    positions_BM = torch.stack([torch.randperm(L)[:9] for _ in range(2)])
    some = DRAWS[name](SeededNoise([1, 2], L), positions_BM)
    for image in range(2):
        assert torch.equal(some[image], everywhere[image][positions_BM[image]])


def test_uniforms_stay_inside_the_open_interval() -> None:
    """An all-ones word once rounded to exactly 1, whose Gumbel noise is infinite (and NaN times 0)."""
    ends = uniform_of(torch.tensor([0, 2**32 - 1]))
    assert 0 < ends[0] < ends[1] < 1
    assert gumbel_of(ends).isfinite().all()


def test_uniform_moments() -> None:
    uniform = (-(-SeededNoise(range(64), 4096).gumbel(_everywhere(64, 4096))).exp()).exp().double()
    assert uniform.mean().item() == pytest.approx(1 / 2, abs=3e-3)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=1e-3)
    neighbours = torch.corrcoef(torch.stack([uniform[:, 1:].flatten(), uniform[:, :-1].flatten()]))[0, 1]
    images = torch.corrcoef(torch.stack([uniform[1:].flatten(), uniform[:-1].flatten()]))[0, 1]
    assert abs(neighbours) < 0.01
    assert abs(images) < 0.01


def test_normal_moments() -> None:
    normal = SeededNoise(range(16), 1024).normal(_everywhere(16, 1024), 4).double()
    assert normal.shape == (16, 1024, 4)
    assert normal.mean().item() == pytest.approx(0, abs=0.02)
    assert normal.var().item() == pytest.approx(1, abs=0.02)
    assert (normal**4).mean().item() == pytest.approx(3, abs=0.1)
    correlation = torch.corrcoef(normal.flatten(0, 1).T) - torch.eye(4)
    assert correlation.abs().max() < 0.03


def test_categorical_frequencies() -> None:
    probs = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.15, 0.05, 0.0])
    drawn = SeededNoise(range(16), 4096).categorical(probs.expand(16, 4096, 7), _everywhere(16, 4096))
    frequencies = torch.bincount(drawn.flatten(), minlength=7) / drawn.numel()
    assert (frequencies - probs).abs().max() < 0.01
    assert (frequencies[probs == 0] == 0).all()


def test_categorical_of_unnormalised_and_certain_probabilities() -> None:
    """Rounding may leave the sum off 1; a sure code is always drawn."""
    certain = torch.zeros(2, L, 5)
    certain[..., 4] = 0.9
    assert (SeededNoise([0, 1], L).categorical(certain, _everywhere(2)) == 4).all()


def test_permutations() -> None:
    order_BL = SeededNoise(range(200), L).permutation(L)
    assert torch.equal(order_BL.sort(dim=1).values, _everywhere(200))
    assert order_BL.float().mean(dim=0).sub((L - 1) / 2).abs().max() < 6
    with pytest.raises(ValueError, match="covers 64 positions, asked to permute 65"):
        SeededNoise([0], L).permutation(L + 1)


def test_replay_takes_draws_in_order() -> None:
    tokens_BLV, confidence_BL = torch.rand(2, 6, 5), torch.rand(2, 6, dtype=torch.float64)
    order_BL, normal_BLC = torch.rand(2, 6).argsort(1), torch.randn(2, 6, 3)
    noise = ReplayNoise([tokens_BLV, confidence_BL, order_BL, normal_BLC])
    positions_BM = torch.tensor([[4, 1], [0, 5]])
    rows = torch.arange(2)[:, None]
    probs_BMV = torch.rand(2, 2, 5).softmax(-1)
    expected_BM = (probs_BMV.log() - (-tokens_BLV[rows, positions_BM].log()).log()).argmax(-1)
    assert torch.equal(noise.categorical(probs_BMV, positions_BM), expected_BM)
    assert torch.equal(noise.gumbel(positions_BM), gumbel_of(confidence_BL[rows, positions_BM]))
    assert torch.equal(noise.permutation(6), order_BL)
    assert torch.equal(noise.normal(positions_BM, 3), normal_BLC[rows, positions_BM])
    with pytest.raises(ValueError, match="expected a draw with 2 axes, but no draw is left"):
        noise.gumbel(positions_BM)


def test_replay_names_a_draw_of_another_kind() -> None:
    with pytest.raises(ValueError, match=r"3 axes, but the recorded one has shape \(2, 6\)"):
        ReplayNoise([torch.rand(2, 6)]).categorical(torch.rand(2, 1, 5), torch.zeros(2, 1, dtype=torch.int64))


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_need_nothing_from_the_host(draw: Callable[[Noise, Tensor], Tensor]) -> None:
    """Reading anything back raises on the meta device; what has only shapes has the same ones."""
    at = _everywhere(1).to("meta")
    seeded, shaped = draw(SeededNoise([3], L, "meta"), at), draw(ShapesOfNoise(), at)
    assert seeded.is_meta
    assert (shaped.shape, shaped.dtype) == (seeded.shape, seeded.dtype)
