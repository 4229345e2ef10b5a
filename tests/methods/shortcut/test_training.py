"""Training a shortcut on a toy teacher: what the rounds hand out, and that it learns, for both networks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from swiftmask.core.llama import FreshTokens
from swiftmask.core.protocol import SamplingOptions
from swiftmask.methods.shortcut import RotaryShortcut, RotaryShortcutConfig, Shortcut, ShortcutConfig
from swiftmask.methods.shortcut.rounds import RoundsConfig, TeacherRounds
from swiftmask.methods.shortcut.training import ShortcutTrainer
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.network import Transformer, TransformerConfig
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import TrainingConfig, train_step

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
    token_weight=0.0,
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
    rounds = TeacherRounds(teacher, ROUNDS, labels, small_shortcut())
    batch = rounds.batch(0, 0, 1)
    assert rounds._round is not None
    records = rounds._round.records
    assert len(records) == 4
    assert batch.start_GBTD.shape == (2, 4, 17, 32)
    starts = [record.features.features_GBTD for record in records]
    first = next(i for i, f in enumerate(starts) if torch.isin(batch.start_GBTD[0, 0], f).all())
    for offset, link in enumerate(batch.links, start=1):
        step = records[first + offset].step
        assert link.ratio == step.num_masked_before / 16
        assert link.positions_BM.shape == (4, step.num_masked_before)
        assert torch.equal(link.rows_BM, link.positions_BM)
        assert isinstance(link.fresh, torch.Tensor)
        assert link.fresh.shape == (8, records[first + offset - 1].step.num_decided, 32)
        assert torch.equal(link.fresh[:4], link.fresh[4:]), "the same for both branches"
        decided = records[first + offset - 1].decision
        assert torch.isin(link.fresh, teacher.embed(decided.tokens_BN, decided.positions_BN)).all()
        assert torch.isin(link.target_GBTD, starts[first + offset]).all()


def test_batches_are_a_function_of_the_step(teacher):
    running, resumed = (
        TeacherRounds(teacher, ROUNDS, labels, small_shortcut()),
        TeacherRounds(teacher, ROUNDS, labels, small_shortcut()),
    )
    for step in range(7):
        expected = running.batch(step, 0, 1)
    actual = resumed.batch(6, 0, 1)
    assert torch.equal(expected.start_GBTD, actual.start_GBTD)
    assert len(expected.links) == len(actual.links)
    for ours, theirs in zip(expected.links, actual.links, strict=True):
        assert torch.equal(ours.target_GBTD, theirs.target_GBTD)
        assert isinstance(ours.fresh, torch.Tensor)
        assert torch.equal(ours.fresh, theirs.fresh)


def test_a_fresh_copying_shortcut_scores_exactly_the_copy_baseline(teacher):
    batch = TeacherRounds(teacher, ROUNDS, labels, small_shortcut()).batch(0, 0, 1)
    loss, metrics = ShortcutTrainer(small_shortcut().start_as_copy(), teacher, ROUNDS)(batch)
    torch.testing.assert_close(metrics["mse"], metrics["copy_mse"])
    torch.testing.assert_close(loss, metrics["copy_mse"])


def test_the_shortcut_fills_the_canvases_of_an_on_policy_round(teacher):
    """And the features that are matched are the teacher's on just those canvases."""
    torch.manual_seed(2)
    wild = Shortcut(small_shortcut().config)
    with torch.no_grad():
        wild.proj_out.weight.normal_()
    own, same = (
        TeacherRounds(teacher, replace(ROUNDS, on_policy=True), labels, shortcut)
        for shortcut in (wild, small_shortcut().start_as_copy())
    )
    theirs = TeacherRounds(teacher, ROUNDS, labels, wild)
    own_round, same_round, their_round = (rounds._decode(0) for rounds in (own, same, theirs))
    canvases = [drawn.records[-1].after.tokens_BL for drawn in (own_round, same_round, their_round)]
    assert not torch.equal(canvases[0], canvases[1])
    assert not torch.equal(canvases[0], canvases[2])
    for drawn in (own_round, their_round):
        for record in drawn.records:
            seen_GBTD = teacher.features(record.before, drawn.condition)
            torch.testing.assert_close(record.features.features_GBTD, seen_GBTD)
    assert [record.step.full for record in own_round.records] == [True, False, False, True]


def test_on_policy_rounds_begin_at_checkpoints():
    training = TrainingConfig(num_steps=8, batch_size=4, save_every=6)
    ROUNDS.check(training)
    with pytest.raises(ValueError, match=r"save_every must be a multiple .* \(4\), got 6"):
        replace(ROUNDS, on_policy=True).check(training)


def test_token_divergence_is_zero_for_perfect_features(teacher):
    batch = TeacherRounds(teacher, ROUNDS, labels, small_shortcut()).batch(0, 0, 1)
    trainer = ShortcutTrainer(small_shortcut(), teacher, replace(ROUNDS, token_weight=1.0))
    for link in batch.links:
        assert trainer._divergence(link.target_GBTD, link) == pytest.approx(0.0, abs=1e-6)
        assert trainer._divergence(link.target_GBTD + 0.5, link) > 1e-4


@pytest.mark.parametrize("token_weight", [0.0, 0.5])
@pytest.mark.parametrize("on_policy", [False, True])
def test_a_shortcut_learns_to_beat_copying(teacher, token_weight, on_policy):
    config = replace(ROUNDS, token_weight=token_weight, on_policy=on_policy)
    trainer = ShortcutTrainer(small_shortcut().start_as_copy(), teacher, config)
    rounds = TeacherRounds(teacher, config, labels, trainer.shortcut)
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
    trainer = ShortcutTrainer(small_shortcut(), teacher, ROUNDS)
    assert all(name.startswith("shortcut.") for name in trainer.state_dict())


PROMPTS = ("a red circle on a blue background", "circle", "a circle")


def prompts(number: int, count: int) -> list[str]:
    return [PROMPTS[(number + i) % len(PROMPTS)] for i in range(count)]


def rotary_shortcut() -> RotaryShortcut:
    torch.manual_seed(1)
    sizes = RotaryShortcutConfig(width=64, bottleneck_width=32, num_heads=4, mlp_width=48)
    return RotaryShortcut(sizes).start_as_copy()


def rotary_rounds(teacher: LuminaDiMOO, shortcut: RotaryShortcut | None = None) -> TeacherRounds:
    """With the shortcut's own canvases, if there is one."""
    config = replace(ROUNDS, on_policy=shortcut is not None)
    return TeacherRounds(teacher, config, prompts, shortcut or rotary_shortcut())


def test_a_rotary_shortcut_reads_the_same_in_training_as_in_a_decode(golden_dimoo: LuminaDiMOO) -> None:
    """Prompt and fresh codes of the picked images alone, at their places, in both branches."""
    rounds = rotary_rounds(golden_dimoo)
    batch = rounds.batch(0, 0, 1)
    assert rounds._round is not None
    condition, records = rounds._round.condition, rounds._round.records
    starts = [record.features.features_GBTD for record in records]
    first = next(i for i, f in enumerate(starts) if torch.isin(batch.start_GBTD, f).all())
    picked = [
        next(i for i in range(8) if torch.equal(starts[first][:, i], batch.start_GBTD[:, b]))
        for b in range(4)
    ]
    for offset, link in enumerate(batch.links):
        whole = RotaryShortcut.fresh(golden_dimoo, condition, records[first + offset].decision)
        for branch in range(2):
            for b, picture in enumerate(picked):
                ours, theirs = link.fresh[torch.tensor([branch * 4 + b])], branch * 8 + picture
                expected = whole[torch.tensor([theirs])]
                assert isinstance(ours, FreshTokens)
                assert torch.equal(ours.embedded_XND, expected.embedded_XND)
                assert torch.equal(ours.places_XN, expected.places_XN)
                assert (ours.padding, ours.row_padding) == (expected.padding, expected.row_padding)
                assert torch.equal(ours.row_places_XT, expected.row_places_XT)
        assert torch.equal(link.rows_BM, golden_dimoo.columns(link.positions_BM, starts[0].shape[2]))
        assert not torch.equal(link.rows_BM, link.positions_BM)


@pytest.mark.parametrize("token_weight", [0.0, 0.5])
def test_a_rotary_shortcut_learns_to_beat_copying(token_weight: float, golden_dimoo: LuminaDiMOO) -> None:
    rounds = rotary_rounds(golden_dimoo)
    trainer = ShortcutTrainer(rotary_shortcut(), golden_dimoo, replace(ROUNDS, token_weight=token_weight))
    optimizer = torch.optim.Adam(trainer.parameters(), 5e-3)
    loss, metrics = trainer(rounds.batch(0, 0, 1))
    torch.testing.assert_close(metrics["mse"], metrics["copy_mse"])
    shares = []
    for step in range(30):
        loss, metrics = train_step(trainer, rounds.batch(step, 0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shares.append((metrics["mse"] / metrics["copy_mse"]).item())
    assert sum(shares[-10:]) / 10 < 0.9


def test_what_a_rotary_shortcut_reads_depends_on_the_prompt(golden_dimoo: LuminaDiMOO) -> None:
    """Of the conditional branch; the null branch has no prompt to read."""
    trainer = ShortcutTrainer(RotaryShortcut(rotary_shortcut().config), golden_dimoo, ROUNDS)
    batch = rotary_rounds(golden_dimoo).batch(0, 0, 1)
    link = batch.links[0]
    fresh = link.fresh
    assert isinstance(fresh, FreshTokens)
    num_prompt = batch.start_GBTD.shape[2] - golden_dimoo.layout.num_image_rows
    other_XND = fresh.embedded_XND.clone()
    other_XND[:, :num_prompt] += 1.0
    changed = replace(link, fresh=replace(fresh, embedded_XND=other_XND))
    before_GBTD, after_GBTD = (trainer._advance(batch.start_GBTD, each) for each in (link, changed))
    assert not torch.allclose(before_GBTD[0], after_GBTD[0])
    torch.testing.assert_close(before_GBTD[1], after_GBTD[1])


@pytest.mark.parametrize(("on_policy", "save_every"), [(False, 3), (True, 4)])
def test_a_killed_training_of_a_rotary_shortcut_continues_with_the_same_losses(
    golden_dimoo: LuminaDiMOO, on_policy: bool, save_every: int, tmp_path: Path
) -> None:
    """Killed in the middle of a round."""
    config = TrainingConfig(num_steps=6, batch_size=4, precision="no", log_every=1, save_every=save_every)

    class KilledError(RuntimeError):
        pass

    def trained(folder: Path, kill_at: int = 99) -> list[float]:
        def watch(progress: Progress) -> None:
            if progress.step == kill_at:
                raise KilledError

        shortcut = rotary_shortcut()
        trainer = ShortcutTrainer(shortcut, golden_dimoo, replace(ROUNDS, token_weight=0.5))
        batches = rotary_rounds(golden_dimoo, shortcut if on_policy else None).batch
        train(trainer, batches, train_step, config, folder, name="test", on_log=watch)
        return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]

    whole = trained(tmp_path / "whole")
    with pytest.raises(KilledError):
        trained(tmp_path / "killed", kill_at=5)
    assert trained(tmp_path / "killed")[save_every - 6 :] == whole[save_every - 6 :]
