"""Training a shortcut on a toy teacher: what the rounds hand out, and that it learns."""

import pytest
import torch

from swiftmask.core.protocol import SamplingOptions
from swiftmask.methods.shortcut import Shortcut, ShortcutConfig
from swiftmask.methods.shortcut.training import RoundsConfig, ShortcutTrainer, TeacherRounds, train_step
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.network import Transformer, TransformerConfig

NUM_CLASSES = 3
SIZES = TransformerConfig(
    width=32, depth=2, num_heads=4, mlp_width=64, codebook_size=16, num_classes=NUM_CLASSES, grid=4
)
ROUNDS = RoundsConfig(
    images_per_round=8,
    updates_per_round=4,
    images_per_update=4,
    step_counts=(4, 6),
    max_rollout=2,
    sampling=SamplingOptions(guidance=3.0),
)


@pytest.fixture(scope="module")
def teacher() -> MaskGIT:
    torch.manual_seed(0)
    codec = VQGANConfig(
        ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), resolution=4, z_channels=4, n_embed=16,
        embed_dim=4,
    )  # fmt: skip
    transformer = Transformer(SIZES)
    with torch.no_grad():
        transformer.tok_emb.weight.mul_(20)  # features that change from step to step
    return MaskGIT(transformer, VQGAN(codec)).requires_grad_(False)


def labels(number: int, count: int) -> list[int]:
    return [(number + i) % NUM_CLASSES for i in range(count)]


def small_shortcut() -> Shortcut:
    torch.manual_seed(1)
    return Shortcut(ShortcutConfig(width=32, bottleneck_width=16, num_heads=4, time_frequencies=16))


def test_a_link_holds_the_teachers_own_features_and_fresh_tokens(teacher):
    rounds = TeacherRounds(teacher, ROUNDS, labels)
    batch = rounds.batch(0, 0, 1)
    records = rounds._records
    assert len(records) == 4
    assert batch.start_GBTD.shape == (2, 4, 17, 32)
    starts = [record.features.features_GBTD for record in records]
    first = next(i for i, f in enumerate(starts) if torch.isin(batch.start_GBTD[0, 0], f).all())
    for offset, link in enumerate(batch.links, start=1):
        step = records[first + offset].step
        assert link.ratio == step.num_masked_before / 16
        assert link.positions_BM.shape == (4, step.num_masked_before)
        assert link.embedded_BND.shape == (4, records[first + offset - 1].step.num_decided, 32)
        assert torch.isin(link.target_GBTD, starts[first + offset]).all()


def test_batches_are_a_function_of_the_step(teacher):
    running, resumed = TeacherRounds(teacher, ROUNDS, labels), TeacherRounds(teacher, ROUNDS, labels)
    for step in range(7):
        expected = running.batch(step, 0, 1)
    actual = resumed.batch(6, 0, 1)
    assert torch.equal(expected.start_GBTD, actual.start_GBTD)
    assert len(expected.links) == len(actual.links)
    for ours, theirs in zip(expected.links, actual.links, strict=True):
        assert torch.equal(ours.target_GBTD, theirs.target_GBTD)
        assert torch.equal(ours.embedded_BND, theirs.embedded_BND)


def test_a_fresh_copying_shortcut_scores_exactly_the_copy_baseline(teacher):
    batch = TeacherRounds(teacher, ROUNDS, labels).batch(0, 0, 1)
    loss, metrics = ShortcutTrainer(small_shortcut().start_as_copy(), teacher)(batch)
    torch.testing.assert_close(metrics["mse"], metrics["copy_mse"])
    torch.testing.assert_close(loss, metrics["copy_mse"])


def test_token_divergence_is_zero_for_perfect_features(teacher):
    batch = TeacherRounds(teacher, ROUNDS, labels).batch(0, 0, 1)
    trainer = ShortcutTrainer(small_shortcut(), teacher, token_weight=1.0)
    for link in batch.links:
        assert trainer._divergence(link.target_GBTD, link) == pytest.approx(0.0, abs=1e-6)
        assert trainer._divergence(link.target_GBTD + 0.5, link) > 1e-4


@pytest.mark.parametrize("token_weight", [0.0, 0.5])
def test_a_shortcut_learns_to_beat_copying(teacher, token_weight):
    rounds = TeacherRounds(teacher, ROUNDS, labels)
    trainer = ShortcutTrainer(small_shortcut().start_as_copy(), teacher, token_weight)
    optimizer = torch.optim.Adam(trainer.parameters(), 3e-3)
    shares = []
    for step in range(80):
        loss, metrics = train_step(trainer, rounds.batch(step, 0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append((metrics["mse"] / metrics["copy_mse"]).item())
    assert sum(shares[-20:]) / 20 < 0.8


def test_the_teacher_is_not_part_of_what_is_trained_or_saved(teacher):
    trainer = ShortcutTrainer(small_shortcut(), teacher)
    assert all(name.startswith("shortcut.") for name in trainer.state_dict())
