"""Rules that decide positions, and the canvas they write to."""

import pytest
import torch
from torch import Tensor

from swiftmask.core.rng import SeededNoise
from swiftmask.core.tokens import CategoricalTokens
from swiftmask.core.types import Canvas, Step, Trajectory
from swiftmask.core.unmask import as_recorded, by_confidence, by_order, order_masked

B, L, V = 3, 12, 5
MASK_ID = V


class _Head:
    """A head with fixed logits per position; remembers where it was asked."""

    def __init__(self, logits_BLV: Tensor) -> None:
        self.logits_BLV, self.asked = logits_BLV, []

    def __call__(self, positions_BM: Tensor) -> CategoricalTokens:
        self.asked.append(positions_BM)
        index_BMV = positions_BM[..., None].expand(-1, -1, V)
        return CategoricalTokens(self.logits_BLV.gather(1, index_BMV), positions_BM)


class _Unscored:
    """A head of continuous tokens, which cannot score."""

    def __init__(self, positions_BM: Tensor) -> None:
        self.positions_BM = positions_BM

    def sample(self, noise: SeededNoise, step: Step) -> tuple[Tensor, None]:
        return noise.normal(self.positions_BM, 2), None

    def log_prob(self, tokens_BM: Tensor, temperature: float) -> None:
        return None


@pytest.fixture
def canvas() -> Canvas:
    """Eight of twelve positions masked, elsewhere in every image."""
    masked_BL = torch.zeros(B, L, dtype=torch.bool)
    for image in range(B):
        masked_BL[image, torch.randperm(L)[:8]] = True
    return Canvas(torch.randint(V, (B, L)).masked_fill(masked_BL, MASK_ID), masked_BL, 8)


def _step(num_decided: int, **settings: float) -> Step:
    return Step(index=2, num_masked_before=8, num_masked_after=8 - num_decided, **settings)  # type: ignore[arg-type]


def test_masked_positions_are_the_masked_ones_in_order(canvas: Canvas) -> None:
    positions_BM = canvas.masked_positions()
    expected_BM = torch.stack([masked_L.nonzero()[:, 0] for masked_L in canvas.masked_BL])
    assert torch.equal(positions_BM, expected_BM)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_write_changes_only_its_positions(canvas: Canvas, shape: tuple[int, ...]) -> None:
    start = Canvas(torch.randn(B, L, *shape), canvas.masked_BL, 8)
    positions_BN = canvas.masked_positions()[:, 2:5]
    tokens_BN = torch.randn(B, 3, *shape)
    after = start.write(positions_BN, tokens_BN)
    rows = torch.arange(B)[:, None]
    assert torch.equal(after.tokens_BL[rows, positions_BN], tokens_BN)
    assert not after.masked_BL[rows, positions_BN].any()
    changed_BL = (after.tokens_BL != start.tokens_BL).reshape(B, L, -1).any(-1)
    assert torch.equal(changed_BL, after.masked_BL != start.masked_BL)
    assert start.masked_BL.sum() == B * 8


@pytest.mark.parametrize("num_decided", [1, 3, 8])
def test_confidence_decides_exactly_so_many_masked_positions(canvas: Canvas, num_decided: int) -> None:
    head = _Head(torch.randn(B, L, V))
    decision = by_confidence(
        head, canvas, _step(num_decided, choice_temperature=4.0), SeededNoise(range(B), L)
    )
    assert decision.positions_BN.shape == decision.tokens_BN.shape == (B, num_decided)
    assert canvas.masked_BL.gather(1, decision.positions_BN).all()
    assert (decision.positions_BN.diff(dim=1) > 0).all()
    assert [asked.shape for asked in head.asked] == [(B, 8)], "the head runs once, at masked positions only"
    expected_BN = _Head(head.logits_BLV)(decision.positions_BN).log_prob(decision.tokens_BN, 1.0)
    assert decision.log_prob_BN is not None
    torch.testing.assert_close(decision.log_prob_BN, expected_BN)


def test_confidence_keeps_the_surest_without_noise(canvas: Canvas) -> None:
    head = _Head(4 * torch.randn(B, L, V))
    everything = by_confidence(head, canvas, _step(8), SeededNoise(range(B), L))
    some = by_confidence(head, canvas, _step(3), SeededNoise(range(B), L))
    assert everything.log_prob_BN is not None
    best_BN = everything.log_prob_BN.topk(3).indices.sort().values
    assert torch.equal(some.positions_BN, everything.positions_BN.gather(1, best_BN))
    assert torch.equal(some.tokens_BN, everything.tokens_BN.gather(1, best_BN))


def test_ties_do_not_change_the_count(canvas: Canvas) -> None:
    decision = by_confidence(_Head(torch.zeros(B, L, V)), canvas, _step(3), SeededNoise(range(B), L))
    assert all(len(set(row.tolist())) == 3 for row in decision.positions_BN)


def test_choice_noise_spreads_the_choice(canvas: Canvas) -> None:
    """With much noise every masked position gets its turn; without, a sure one always wins."""
    logits_BLV = torch.zeros(200, L, V)
    logits_BLV[:, 4, 0] = 9.0
    blank = Canvas(torch.full((200, L), MASK_ID), torch.ones(200, L, dtype=torch.bool), L)
    for noise_scale, expected in ((0.0, 1), (1000.0, L)):
        step = Step(index=0, num_masked_before=L, num_masked_after=L - 1, choice_temperature=noise_scale)
        decision = by_confidence(_Head(logits_BLV), blank, step, SeededNoise(range(200), L))
        assert len(decision.positions_BN.unique()) == expected


def test_confidence_refuses_a_head_that_cannot_score(canvas: Canvas) -> None:
    with pytest.raises(ValueError, match="use by_order for continuous tokens"):
        by_confidence(_Unscored, canvas, _step(3), SeededNoise(range(B), L))  # type: ignore[arg-type]


def test_order_runs_the_head_only_where_it_decides(canvas: Canvas) -> None:
    noise, head = SeededNoise(range(B), L), _Head(torch.randn(B, L, V))
    order_BM = order_masked(noise.permutation(L), canvas)
    left, seen = 8, []
    for index, count in enumerate((1, 2, 5)):
        step = Step(index=index, num_masked_before=left, num_masked_after=left - count)
        decision = by_order(order_BM)(head, canvas, step, noise)
        assert torch.equal(decision.positions_BN, order_BM[:, 8 - left : 8 - left + count])
        seen.append(decision.positions_BN)
        left -= count
    assert [asked.shape[1] for asked in head.asked] == [1, 2, 5]
    assert torch.equal(torch.cat(seen, dim=1).sort(dim=1).values, canvas.masked_positions())


def test_order_works_without_scores(canvas: Canvas) -> None:
    rule = by_order(order_masked(torch.arange(L).expand(B, L), canvas))
    decision = rule(_Unscored, canvas, _step(3), SeededNoise(range(B), L))  # type: ignore[arg-type]
    assert decision.tokens_BN.shape == (B, 3, 2)
    assert decision.log_prob_BN is None


def test_order_masked_keeps_the_order(canvas: Canvas) -> None:
    order_BL = SeededNoise(range(B), L).permutation(L)
    kept_BM = order_masked(order_BL, canvas)
    for image in range(B):
        expected = [p for p in order_BL[image].tolist() if canvas.masked_BL[image, p]]
        assert kept_BM[image].tolist() == expected


def test_recorded_decisions_are_repeated_and_scored(canvas: Canvas) -> None:
    step, head = _step(3, temperature=0.6), _Head(torch.randn(B, L, V))
    decision = by_confidence(head, canvas, step, SeededNoise(range(B), L))
    after = canvas.write(decision.positions_BN, decision.tokens_BN)
    decided_at_BL = torch.full((B, L), -1).scatter(1, decision.positions_BN, step.index)
    again = as_recorded(Trajectory(canvas, after.tokens_BL, decided_at_BL, None))(
        head, canvas, step, SeededNoise([9] * B, L)
    )
    assert torch.equal(again.positions_BN, decision.positions_BN)
    assert torch.equal(again.tokens_BN, decision.tokens_BN)
    assert again.log_prob_BN is not None
    torch.testing.assert_close(again.log_prob_BN, decision.log_prob_BN)


class _Given:
    """Noise that was written down: Gumbel draws per position; sampling takes code 0."""

    def __init__(self, gumbel_BL: Tensor) -> None:
        self.gumbel_BL = gumbel_BL

    def categorical(self, probs_BMV: Tensor, positions_BM: Tensor) -> Tensor:
        return torch.zeros_like(positions_BM)

    def gumbel(self, positions_BM: Tensor) -> Tensor:
        return self.gumbel_BL.gather(1, positions_BM)


@pytest.mark.parametrize(("advantage", "winner"), [(0.95, 1), (1.05, 0)])
def test_confidence_is_log_prob_plus_scaled_noise(advantage: float, winner: int) -> None:
    """Position 1 is surer by exactly 1 nat; noise of scale 2 favours position 0 by a little less or more."""
    log_prob_L = torch.tensor([-2.0, -1.0])
    logits_BLV = torch.full((1, 2, V), -torch.inf)
    logits_BLV[..., 0], logits_BLV[..., 1] = log_prob_L, torch.log1p(-log_prob_L.exp())
    blank = Canvas(torch.full((1, 2), MASK_ID), torch.ones(1, 2, dtype=torch.bool), 2)
    step = Step(index=0, num_masked_before=2, num_masked_after=1, choice_temperature=2.0)
    noise = _Given(torch.tensor([[advantage / 2, 0.0]]))
    decision = by_confidence(_Head(logits_BLV), blank, step, noise)  # type: ignore[arg-type]
    assert decision.positions_BN.tolist() == [[winner]]
