"""The objective: what is masked, what time it is, and that a few steps learn."""

import copy
import math

import pytest
import torch

from swiftmask.core.schedule import meissonic_schedule
from swiftmask.models.meissonic import Meissonic
from swiftmask.models.meissonic.training import MaskedBatch, TransformerTrainer, steps_left_at

MICRO = [8.0, 8.0, 0.0, 0.0, 6.0]


def draw(model: Meissonic, batch: int, seed: int = 0, **options: int) -> MaskedBatch:
    generator = torch.Generator().manual_seed(seed)
    ids_PT = model.text_encoder.tokenizer(["a red circle", "a blue square", ""])
    which_B = torch.arange(batch) % 2
    codes_BHW = (which_B[:, None, None] * 16 + torch.arange(16).view(4, 4)).contiguous()
    return MaskedBatch.draw(
        codes_BHW,
        ids_PT[which_B],
        torch.tensor([MICRO] * batch),
        generator,
        mask_id=model.spec.mask_id,
        null_T=ids_PT[2],
        **options,
    )


def test_masks_hide_codes_and_follow_the_cosine(model: Meissonic) -> None:
    batch = draw(model, 4000)
    masked_BL = batch.masked_BHW.flatten(1)
    assert (batch.ids_BHW[batch.masked_BHW] == 39).all()
    assert torch.equal(batch.ids_BHW[~batch.masked_BHW], batch.codes_BHW[~batch.masked_BHW])
    assert masked_BL.sum(dim=1).min() >= 1
    share = masked_BL.float().mean()
    assert share.item() == pytest.approx(2 / math.pi, abs=0.02)  # the mean of cos(pi u / 2)
    assert (masked_BL.float().mean(dim=0) - share).abs().max() < 0.05


def test_a_tenth_of_the_captions_is_dropped(model: Meissonic) -> None:
    batch = draw(model, 4000)
    dropped_B = (batch.captions_BT == model.text_encoder.tokenizer([""])).all(dim=1)
    assert dropped_B.float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_times_are_those_of_a_decode() -> None:
    """A canvas that step i of N starts with is at u = i / N, and sampling tells the backbone N - 1 - i."""
    for num_steps in (1, 5, 8):
        schedule = meissonic_schedule(4096, num_steps)
        share_S = torch.tensor([step.num_masked_before / 4096 for step in schedule], dtype=torch.float64)
        moment_S = share_S.arccos() * 2 / math.pi
        left_S = steps_left_at(moment_S + 1e-3, torch.full((num_steps,), num_steps))
        assert left_S.tolist() == [num_steps - 1 - step.index for step in schedule]
    assert steps_left_at(torch.tensor([0.9999999]), torch.tensor([48])).item() == 0


def test_times_cover_every_number_of_steps(model: Meissonic) -> None:
    assert set(draw(model, 4000, max_steps=4).timesteps_B.tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_only_masked_positions_count(model: Meissonic) -> None:
    trainer, batch = TransformerTrainer(model.transformer, model.text_encoder), draw(model, 4)
    loss, metrics = trainer(batch)
    other = copy.copy(batch.codes_BHW)
    other[~batch.masked_BHW] = 0
    changed = MaskedBatch(
        batch.ids_BHW, other, batch.masked_BHW, batch.captions_BT, batch.timesteps_B, batch.micro_B5
    )
    assert torch.equal(trainer(changed)[0], loss)
    assert metrics.keys() == {"masked_loss", "accuracy"}


def test_a_few_steps_learn_and_reach_the_text_encoder(model: Meissonic) -> None:
    learner = copy.deepcopy(model).requires_grad_(True)
    trainer = TransformerTrainer(learner.transformer, learner.text_encoder)
    optimizer = torch.optim.Adam(trainer.parameters(), lr=2e-3)
    losses = []
    for seed in range(12):
        loss, _ = trainer(draw(learner, 8, seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert learner.text_encoder.clip.text_model.embeddings.token_embedding.weight.grad is not None
    assert learner.text_encoder.clip.text_model.embeddings.token_embedding.weight.grad.any()
