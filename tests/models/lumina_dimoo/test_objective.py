"""Masked training: what is masked, what padding does, and that it learns."""

import pytest
import torch

from swiftmask.models.lumina_dimoo.layout import Layout, Vocabulary
from swiftmask.models.lumina_dimoo.network import Backbone, BackboneConfig
from swiftmask.models.lumina_dimoo.training import BackboneTrainer, MaskedBatch

WORDS = Vocabulary(
    mask=10,
    newline=11,
    image_start=12,
    image_end=13,
    answer_start=14,
    answer_end=15,
    first_code=16,
    codebook_size=6,
)
LAYOUT = Layout(WORDS, (2, 3))
NULL = [1, 2]


def trainer() -> BackboneTrainer:
    sizes = BackboneConfig(width=32, depth=1, num_heads=2, mlp_width=48, vocabulary_size=WORDS.size)
    return BackboneTrainer(Backbone(sizes), LAYOUT)


def batch(seed: int, prompts: list[list[int]], codes_BL: torch.Tensor) -> MaskedBatch:
    return MaskedBatch.draw(codes_BL, prompts, NULL, torch.Generator().manual_seed(seed))


def test_shares_of_masks_and_dropped_prompts() -> None:
    drawn = batch(0, [[5, 6, 7]] * 4000, torch.zeros(4000, 6, dtype=torch.int64))
    counts_B = drawn.masked_BL.sum(1)
    assert counts_B.min() == 1
    assert counts_B.max() >= 5
    expected = (torch.cos(torch.pi / 2 * torch.rand(100_000)) * 6).floor().clamp(min=1).mean()
    assert counts_B.float().mean().item() == pytest.approx(expected.item(), rel=0.03)
    dropped = sum(length == len(NULL) for length in drawn.condition.lengths) / 4000
    assert dropped == pytest.approx(0.1, abs=0.02)


def test_the_loss_reads_masked_codes_only_and_padding_changes_nothing() -> None:
    model = trainer()
    codes_BL = torch.randint(6, (2, 6))
    drawn = batch(0, [[5, 6, 7, 8], [9]], codes_BL)
    assert drawn.condition.lengths == (1, 4), "the shortest prompt comes first"
    assert torch.equal(drawn.codes_BL, codes_BL.flip(0))
    whole, _ = model(drawn)
    singles, counts = [], []
    for i, prompt in enumerate(([9], [5, 6, 7, 8])):
        condition = type(drawn.condition).of([prompt], NULL, "cpu")
        masked_1L = drawn.masked_BL[i : i + 1]
        loss, _ = model(MaskedBatch(condition, drawn.codes_BL[i : i + 1], masked_1L))
        singles.append(loss * masked_1L.sum())
        counts.append(masked_1L.sum())
    torch.testing.assert_close(whole, sum(singles) / sum(counts))


def test_it_learns_what_the_prompt_says() -> None:
    model = trainer()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        kinds = torch.arange(16) % 2
        prompts = [[4] if kind else [3, 5] for kind in kinds.tolist()]
        loss, metrics = model(batch(step, prompts, (kinds[:, None] * 4).expand(-1, 6).clone()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert 0 <= metrics["accuracy"] <= 1
