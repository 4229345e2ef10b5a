"""Distillation on a toy teacher: whose turn it is, what stays still, exact resume, and that it works."""

import copy
from pathlib import Path

import pytest
import torch

from swiftmask.methods.marval.student import contexts_at
from swiftmask.methods.marval.training import (
    MarvalBatch,
    MarvalBatches,
    MarvalConfig,
    MarvalTrainer,
    MaskLaw,
    Turn,
    make_trainer,
    turn_of,
)
from swiftmask.training.average import Average
from swiftmask.training.checkpoint import Reached, save_checkpoint
from swiftmask.training.frozen import Outside
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import TrainingConfig, step_seed, train_step

WIDE = MaskLaw(lowest=0.3)
CONFIG = MarvalConfig(guidance=1.5, mask=WIDE)


def clean(step: int, rank: int, num_ranks: int) -> tuple[torch.Tensor, list[int]]:
    generator = torch.Generator().manual_seed(step_seed(5, step, rank))
    return torch.randn(4, 16, 3, generator=generator), [0, 1, 2, step % 3]


def batch_of(turn: Turn, step: int = 0) -> MarvalBatch:
    batch = MarvalBatches(clean, CONFIG)(step, 0, 1)
    return MarvalBatch(turn, batch.canvas, batch.what)


def gradients(trainer: MarvalTrainer, batch: MarvalBatch) -> dict[str, torch.Tensor]:
    """Those that are not None, after one backward pass from nothing, the noise seeded."""
    trainer.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    trainer(batch)[0].backward()
    return {name: p.grad for name, p in trainer.named_parameters() if p.grad is not None}


def perturbed(trainer: MarvalTrainer, *, scale: float = 0.1) -> MarvalTrainer:
    """Student and auxiliary network some way into a training."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in trainer.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn_like(parameter))
    return trainer


def test_the_auxiliary_networks_turns_come_first():
    assert [turn_of(step, 1).value for step in range(4)] == ["auxiliary", "student"] * 2
    assert [turn_of(step, 3).value for step in range(5)] == [*["auxiliary"] * 3, "student", "auxiliary"]


def test_batches_are_a_function_of_the_step():
    first, second = MarvalBatches(clean, CONFIG), MarvalBatches(clean, CONFIG)
    for step in range(4):
        expected = first(step, 0, 1)
    actual = second(3, 0, 1)
    assert torch.equal(actual.canvas.tokens_BL, expected.canvas.tokens_BL)
    assert torch.equal(actual.canvas.masked_BL, expected.canvas.masked_BL)
    assert (actual.turn, actual.what) == (Turn.STUDENT, [0, 1, 2, 0])
    assert len({first(step, 0, 1).canvas.num_masked for step in range(12)}) > 1


@pytest.mark.parametrize("turn", list(Turn))
def test_a_turn_touches_only_its_own_parameters(teacher, own, turn):
    trainer = perturbed(make_trainer(teacher, own, CONFIG))
    touched = gradients(trainer, batch_of(turn))
    assert set(touched) == {f"{turn.value}.model.{name}" for name in own}
    assert all(gradient.abs().sum() > 0 for gradient in touched.values())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_nothing_moves_a_student_that_agrees_with_its_teacher(teacher, own):
    """Auxiliary network = teacher and no guidance: the same noise twice, no gradient; guidance brings one."""
    still = make_trainer(teacher, own, MarvalConfig(guidance=1.0, mask=WIDE))
    guided = make_trainer(teacher, own, CONFIG)
    largest = [
        max(gradient.abs().max().item() for gradient in gradients(trainer, batch_of(Turn.STUDENT)).values())
        for trainer in (still, guided)
    ]
    assert largest[0] == pytest.approx(0.0, abs=1e-6)
    assert largest[1] > 1e-3


def test_gradients_reach_the_student_through_both_heads(teacher, own):
    """By the chain rule written out: the loss differentiated in the noised tokens, heads included."""
    trainer = perturbed(make_trainer(teacher, own, MarvalConfig(guidance=1.0, mask=WIDE, radius=0.1)))
    batch = batch_of(Turn.STUDENT)
    touched = gradients(trainer, batch)
    torch.manual_seed(1)
    positions_BM = batch.canvas.masked_positions()

    def contexts(model):
        return contexts_at(model.features(batch.canvas, model.encode(batch.what)), positions_BM)[0]

    student_XD = contexts(trainer.student.model)
    teacher_XD, auxiliary_XD = (contexts(m).detach() for m in (teacher, trainer.auxiliary.model))
    tokens_XC = trainer.student.predict(torch.randn(len(student_XD), 3), student_XD)
    timesteps_X = torch.randint(20, 981, (len(student_XD),))
    eps_XC = torch.randn_like(tokens_XC)
    signal_X1 = teacher.signal_T[timesteps_X].float()[:, None]
    sigma_X1 = (1 - signal_X1).sqrt()
    noisy_XC = signal_X1.sqrt() * tokens_XC + sigma_X1 * eps_XC
    still = copy.deepcopy(trainer.auxiliary).requires_grad_(False)
    auxiliary_eps_XC = still(noisy_XC, timesteps_X, auxiliary_XD)
    gap_XC = (teacher.denoise(noisy_XC, timesteps_X, teacher_XD) - auxiliary_eps_XC) / sigma_X1
    norm_X1 = (gap_XC.square().sum(-1, keepdim=True) + 0.01).sqrt()
    first_X = -(gap_XC / norm_X1 * (eps_XC - auxiliary_eps_XC) / sigma_X1).sum(-1)
    expected = torch.autograd.grad(
        (first_X + norm_X1[:, 0]).mean(), [p for p in trainer.student.parameters() if p.requires_grad]
    )
    for ours, theirs in zip(touched.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_one_backbone_gives_the_contexts_that_three_would(teacher, monkeypatch):
    """A head-only run calls the teacher's backbone once; its gradients are those of separate backbones."""
    own = teacher.head_parameters()
    shared, separate = make_trainer(teacher, own, CONFIG), make_trainer(teacher, own, CONFIG)
    monkeypatch.setattr(separate, "_one_backbone", False)
    assert shared._one_backbone
    assert not make_trainer(teacher, teacher.network_parameters(), CONFIG)._one_backbone
    calls: list[str] = []
    run = type(teacher).features
    monkeypatch.setattr(
        type(teacher), "features", lambda self, *inputs: calls.append("backbone") or run(self, *inputs)
    )
    counts = []
    for turn in Turn:
        pair = []
        for trainer in (shared, separate):
            calls.clear()
            pair.append(gradients(perturbed(trainer), batch_of(turn)))
            counts.append(len(calls))
        for name, gradient in pair[0].items():
            torch.testing.assert_close(gradient, pair[1][name])
    assert counts == [1, 2, 1, 3]


def test_several_noisings_of_a_token_make_the_gradient_steadier(teacher, own):
    def spread(noisings_per_token: int) -> float:
        config = MarvalConfig(mask=WIDE, noisings_per_token=noisings_per_token)
        trainer, batch = perturbed(make_trainer(teacher, own, config)), batch_of(Turn.AUXILIARY)
        losses_S = torch.stack([trainer(batch)[0].detach() for _ in range(30)])
        return losses_S.std().item()

    assert spread(16) < 0.5 * spread(1)


def test_stays_in_eval_mode(teacher, own):
    """Dropout would make two passes differ."""
    trainer = make_trainer(teacher, own, CONFIG).train()
    assert not any(module.training for module in trainer.modules())


def test_state_holds_what_is_trained_and_copies_share_the_teacher(teacher, own):
    trainer = make_trainer(teacher, own, CONFIG)
    expected = {f"{part}.model.{name}" for part in ("student", "auxiliary") for name in own}
    assert set(trainer.state_dict()) == expected
    average = Average(trainer, 0.9)
    assert set(average.state_dict()) == {"num_averaged"} | {f"module.{name}" for name in expected}
    assert isinstance(average.module, MarvalTrainer)
    assert average.module._teacher.value is teacher
    teachers = {p.data_ptr() for p in teacher.parameters()}
    frozen = {p.data_ptr() for p in average.module.parameters() if not p.requires_grad}
    assert frozen <= teachers, "the codec, or the backbone of a head alone, is in memory twice"
    perturbed(trainer)
    average.load_state_dict({"num_averaged": torch.tensor(1)} | {
        f"module.{name}": value for name, value in trainer.state_dict().items()
    })  # fmt: skip
    for name, value in average.module.state_dict().items():
        assert torch.equal(value, trainer.state_dict()[name])
    lacking = {name: value for name, value in trainer.state_dict().items() if "student" in name}
    with pytest.raises(RuntimeError, match="Missing key"):
        trainer.load_state_dict(lacking)


def test_what_is_held_outside_is_no_submodule(teacher):
    class Holder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.outside = Outside(teacher)

    assert not list(Holder().parameters())
    assert copy.deepcopy(Holder()).outside.value is teacher


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"first_timestep": 30, "last_timestep": 20},
            "first_timestep must be at most last_timestep, got 30 and 20",
        ),
        ({"noisings_per_token": 0}, "noisings_per_token must be a whole number between 1 and 1000, got 0"),
        ({"auxiliary_updates": 0}, "auxiliary_updates must be a whole number between 1 and 1000, got 0"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        MarvalConfig(**values)


def test_timesteps_the_teacher_lacks_are_refused(teacher, own):
    with pytest.raises(ValueError, match="below the 1000 timesteps of toy, got 1000"):
        make_trainer(teacher, own, MarvalConfig(last_timestep=1000))


def settings(num_steps: int, **changes) -> TrainingConfig:
    given = {"learning_rate": 3e-3, "warmup_steps": 2, "log_every": 1, "save_every": 3, "precision": "no"}
    return TrainingConfig(num_steps=num_steps, batch_size=4, **(given | changes))


class KilledError(Exception):
    pass


def kill(progress: Progress) -> None:
    if progress.step == 5:  # after the checkpoint of step 3, which ended on an auxiliary turn
        raise KilledError


def test_a_killed_run_continues_bit_for_bit(teacher, own, tmp_path):
    batches = MarvalBatches(clean, CONFIG)
    run = (batches, train_step, settings(8))
    whole = train(make_trainer(teacher, own, CONFIG), *run, tmp_path / "whole", name="toy")
    with pytest.raises(KilledError):
        train(make_trainer(teacher, own, CONFIG), *run, tmp_path / "cut", name="toy", on_log=kill)
    resumed = train(perturbed(make_trainer(teacher, own, CONFIG)), *run, tmp_path / "cut", name="toy")
    assert losses(tmp_path / "cut")[-5:] == losses(tmp_path / "whole")[-5:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def losses(folder: Path) -> list[str]:
    return [line.split('"loss": ')[1] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_checkpoints_leave_the_frozen_parts_out(teacher, own, tmp_path):
    trainer = make_trainer(teacher, own, CONFIG)
    save_checkpoint(tmp_path / "small.safetensors", {"model": trainer}, [], Reached(0, {}), "toy")
    everything = make_trainer(teacher, [name for name, _ in teacher.named_parameters()], CONFIG)
    save_checkpoint(tmp_path / "large.safetensors", {"model": everything}, [], Reached(0, {}), "toy")
    small, large = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("small", "large"))
    assert small < large


@pytest.mark.parametrize("precision", ["bf16", "bf16-weights"])
def test_half_precision_trains_both_networks(teacher, own, tmp_path, precision):
    trainer = make_trainer(teacher, own, CONFIG)
    before = copy.deepcopy(trainer.state_dict())
    batches = MarvalBatches(clean, CONFIG)
    train(trainer, batches, train_step, settings(2, precision=precision), tmp_path, name="toy")
    for name, value in trainer.state_dict().items():
        assert not torch.equal(value, before[name]), name


def moments_gap(trainer: MarvalTrainer, teacher) -> float:
    """Distance between the student's tokens and the teacher's, in mean and spread, on one context each."""
    canvas = batch_of(Turn.STUDENT).canvas
    positions_BM = canvas.masked_positions()
    features_GBTD = teacher.features(canvas, teacher.encode([0, 1, 2, 0]))
    student = trainer.student
    context_XD = contexts_at(student.features(canvas, student.encode([0, 1, 2, 0])), positions_BM)[0]
    draws_KXC = torch.stack(
        [student.predict(torch.randn(len(context_XD), 3), context_XD) for _ in range(400)]
    )
    mean_XC, log_std_XC = teacher.moments(contexts_at(features_GBTD, positions_BM)[0])
    spread_XC = draws_KXC.std(dim=0) / log_std_XC.exp() - 1
    shift_XC = (draws_KXC.mean(dim=0) - mean_XC) / log_std_XC.exp()
    return (spread_XC.square() + shift_XC.square()).mean().sqrt().item()


def test_distillation_brings_the_students_tokens_to_the_teachers(teacher, own):
    """From a blurred guess (all but no spread) to the teacher's means and standard deviations."""
    config = MarvalConfig(guidance=1.0, mask=WIDE)
    trainer = make_trainer(teacher, own, config)
    batches = MarvalBatches(clean, config)
    optimizer = torch.optim.Adam((p for p in trainer.parameters() if p.requires_grad), 4e-3, (0.0, 0.99))
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=300)
    with torch.no_grad():
        before = moments_gap(trainer, teacher)
    for step in range(300):
        optimizer.zero_grad(set_to_none=True)
        train_step(trainer, batches(step, 0, 1))[0].backward()
        optimizer.step()
        falling.step()
    with torch.no_grad():
        after = moments_gap(trainer, teacher)
    assert after < 0.5 * before, (before, after)
