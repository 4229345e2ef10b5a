"""Reward tuning on a toy student: exact gradients, the memory of one step, and more reward."""

import copy

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from swiftmask.core.decode import FullFeatures
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.methods.marval import reward_tuning
from swiftmask.methods.marval.reward_tuning import (
    RegularizedBatch,
    RegularizedBatches,
    RegularizedTrainer,
    RewardBatch,
    RewardBatches,
    RewardConfig,
    RewardLoss,
    RewardTrainer,
    clamp_straight_through,
    roll_out,
)
from swiftmask.methods.marval.student import Student, as_module, contexts_at, make_student
from swiftmask.methods.marval.training import MarvalBatch, MarvalBatches, MarvalConfig, MaskLaw, make_trainer
from swiftmask.training.loop import train
from swiftmask.training.setup import TrainingConfig, step_seed, train_step

NUM_STEPS = 5
BATCH = RewardBatch([0, 2, 1], [7, 8, 9])


def brightness(images_B3HW: Tensor, what: object) -> Tensor:
    return images_B3HW.square().mean(dim=(1, 2, 3))


def config(*, grad_iterations: int | None = None, divergence_weight: float = 0.1) -> RewardConfig:
    return RewardConfig(
        num_steps=NUM_STEPS,
        images_per_update=4,
        grad_iterations=grad_iterations,
        divergence_weight=divergence_weight,
    )


def score(tokens_BLC: Tensor) -> Tensor:
    """Reads every token another way."""
    return (tokens_BLC * torch.linspace(-1, 1, tokens_BLC[0].numel()).view(16, 3)).sum()


def trained(student: Student) -> list[torch.nn.Parameter]:
    return [parameter for parameter in student.parameters() if parameter.requires_grad]


def gradients(loss: Tensor, student: Student) -> list[Tensor]:
    return list(torch.autograd.grad(loss, trained(student)))


def by_hand(student: Student, grad_iterations: int) -> Tensor:
    """The roll-out without decode loop and recomputation; tokens cut off before the last steps."""
    canvas, noise = student.blank(len(BATCH.what)), SeededNoise(BATCH.seeds, 16)
    order_BL = noise.permutation(16)
    for step in student.schedule(NUM_STEPS, num_masked=16, options=SamplingOptions()):
        positions_BN = order_BL[:, 16 - step.num_masked_before : 16 - step.num_masked_after]
        features_GBTD = student.features(canvas, student.encode(BATCH.what))
        noise_XC = noise.normal(positions_BN, 3).flatten(0, 1)
        tokens_XC = student.predict(noise_XC, contexts_at(features_GBTD, positions_BN)[0])
        if step.index < NUM_STEPS - grad_iterations:
            tokens_XC = tokens_XC.detach()
        canvas = canvas.write(positions_BN, tokens_XC.view(*positions_BN.shape, 3))
    return canvas.tokens_BL


@pytest.mark.parametrize("grad_iterations", [None, 1, 3, NUM_STEPS])
def test_gradients_are_those_of_the_last_steps_without_recomputation(teacher, own, grad_iterations):
    student = make_student(teacher, own)
    tokens_BLC = roll_out(student, BATCH, config(grad_iterations=grad_iterations))
    expected_BLC = by_hand(student, grad_iterations or NUM_STEPS)
    torch.testing.assert_close(tokens_BLC, expected_BLC)
    pairs = zip(gradients(score(tokens_BLC), student), gradients(score(expected_BLC), student), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_fewer_steps_with_gradients_are_another_gradient(teacher, own):
    student = make_student(teacher, own)
    whole, last = (
        gradients(score(roll_out(student, BATCH, config(grad_iterations=m))), student) for m in (NUM_STEPS, 2)
    )
    assert any((a - b).abs().max() > 0.05 * a.abs().max() for a, b in zip(whole, last, strict=True))


def test_autocast_keeps_the_gradients_of_the_last_steps(teacher, own):
    """Its cache of cast weights must not carry over from the steps without gradients."""
    student = make_student(teacher, own)
    with torch.autocast("cpu", torch.bfloat16):
        loss = score(roll_out(student, BATCH, config(grad_iterations=2)))
    assert all(gradient.abs().sum() > 0 for gradient in gradients(loss, student))


@pytest.fixture
def features_kept(monkeypatch) -> list[StorageWeakRef]:
    """Memory of the features, one entry per call of the backbone."""
    kept: list[StorageWeakRef] = []
    run = Student.features

    def watched(self: Student, canvas, condition) -> Tensor:
        features_GBTD = run(self, canvas, condition)
        kept.append(StorageWeakRef(features_GBTD.untyped_storage()))
        return features_GBTD

    monkeypatch.setattr(Student, "features", watched)
    return kept


def watch_backbone(student: Student) -> list[StorageWeakRef]:
    """Memory of an activation inside the backbone, one entry per call."""
    kept: list[StorageWeakRef] = []

    def remember(module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append(StorageWeakRef(output.untyped_storage()))

    as_module(student.model).get_submodule("dropout").register_forward_hook(remember)
    return kept


def alive(kept: list[StorageWeakRef]) -> int:
    return sum(not reference.expired() for reference in kept)


def test_no_step_keeps_its_activations_or_features_for_the_backward_pass(teacher, own, features_kept):
    student = make_student(teacher, own)
    activations = watch_backbone(student)
    loss = score(roll_out(student, BATCH, config()))
    assert len(features_kept) == len(activations) == NUM_STEPS
    assert alive(features_kept) == alive(activations) == 0
    loss.backward()
    assert len(activations) > NUM_STEPS


def test_without_recomputation_every_step_keeps_its_activations(teacher, own, monkeypatch):
    """The test above can fail. A head-only student's first step has nothing to differentiate."""
    monkeypatch.setattr(reward_tuning, "RecomputedFeatures", FullFeatures)
    student = make_student(teacher, own)
    activations = watch_backbone(student)
    loss = score(roll_out(student, BATCH, config()))
    assert alive(activations) >= NUM_STEPS - 1
    loss.backward()


def test_gradients_reach_saturated_pixels_of_a_codec_that_does_not_clamp(teacher, own):
    student = make_student(teacher, own)
    with torch.no_grad():
        teacher.codec.bias.fill_(5.0)  # the student's too: every pixel far above 1
    darkness = RewardLoss(reward=lambda images, what: -brightness(images, what), config=config())
    unclamped = RewardLoss(reward=darkness.reward, config=config(), to_pixels=teacher.paint)
    largest = []
    for loss_of in (darkness, unclamped):
        loss, metrics = loss_of(student, BATCH)
        assert metrics["reward"].item() == pytest.approx(-1.0)
        assert loss.item() == pytest.approx(1.0)
        largest.append(max(gradient.abs().max().item() for gradient in gradients(loss, student)))
    assert largest[0] == 0.0
    assert largest[1] > 1e-3


def test_straight_through_clamp():
    x = torch.tensor([-1.0, 0.3, 2.0], requires_grad=True)
    clamped = clamp_straight_through(x)
    torch.testing.assert_close(clamped, torch.tensor([0.0, 0.3, 1.0]))
    (gradient,) = torch.autograd.grad(clamped.sum(), x)
    assert torch.equal(gradient, torch.ones(3))


def test_batches_are_a_function_of_the_step_and_never_repeat_a_seed():
    batches = RewardBatches(["a", "b", "c"], config())
    drawn = [batches(step, rank, 2) for step in range(20) for rank in range(2)]
    assert batches(3, 1, 2) == drawn[7]
    seeds = [seed for batch in drawn for seed in batch.seeds]
    assert len(set(seeds)) == len(seeds) == 160
    assert {entry for batch in drawn for entry in batch.what} == {"a", "b", "c"}


@pytest.mark.parametrize("grad_iterations", [0, NUM_STEPS + 1])
def test_impossible_iterations_are_refused(grad_iterations):
    with pytest.raises(ValueError, match=rf"grad_iterations must be .*, got {grad_iterations}"):
        config(grad_iterations=grad_iterations)


def settings(num_steps: int) -> TrainingConfig:
    return TrainingConfig(
        num_steps=num_steps,
        batch_size=4,
        learning_rate=1e-2,
        warmup_steps=1,
        save_every=2,
        log_every=1,
        precision="no",
    )


def clean(step: int, rank: int, num_ranks: int) -> tuple[Tensor, list[int]]:
    generator = torch.Generator().manual_seed(step_seed(5, step, rank))
    return torch.randn(4, 16, 3, generator=generator), [0, 1, 2, 0]


def test_training_raises_the_reward(teacher, own, tmp_path):
    student = make_student(teacher, own)
    loss = RewardLoss(reward=brightness, config=config(grad_iterations=3))
    with torch.no_grad():
        before = loss(student, BATCH)[1]["reward"]
    batches = RewardBatches([0, 1, 2], config())
    trainer = train(RewardTrainer(student, loss), batches, train_step, settings(30), tmp_path, name="toy")
    with torch.no_grad():
        after = loss(trainer.student, BATCH)[1]["reward"]
    assert after > before + 0.02
    assert set(trainer.state_dict()) == {f"student.model.{name}" for name in own}
    assert trainer._reward_loss.value is loss  # though this is the averaged copy


def test_a_regularized_run_trains_both_networks_in_turns(teacher, own, tmp_path):
    data = MarvalConfig(guidance=1.5, mask=MaskLaw(lowest=0.3))
    trainer = RegularizedTrainer(
        make_trainer(teacher, own, data), RewardLoss(reward=brightness, config=config())
    )
    batches = RegularizedBatches(RewardBatches([0, 1, 2], config()), MarvalBatches(clean, data))
    assert isinstance(batches(0, 0, 1), MarvalBatch)
    assert isinstance(batches(1, 0, 1), RegularizedBatch)
    start = copy.deepcopy(trainer.state_dict())
    for num_steps, parts in ((1, {"auxiliary"}), (2, {"auxiliary", "student"})):
        trainer.load_state_dict(start)
        train(trainer, batches, train_step, settings(num_steps), tmp_path / str(num_steps), name="toy")
        state = trainer.state_dict()
        assert {name.split(".")[1] for name in state if not torch.equal(state[name], start[name])} == parts


def test_a_regularized_turn_adds_the_weighted_divergence(teacher, own):
    data = MarvalConfig(guidance=1.5, mask=MaskLaw(lowest=0.3))
    chosen = config(divergence_weight=0.25)
    trainer = RegularizedTrainer(
        make_trainer(teacher, own, data), RewardLoss(reward=brightness, config=chosen)
    )
    real = MarvalBatches(clean, data)(1, 0, 1)
    torch.manual_seed(3)
    loss, metrics = train_step(trainer, RegularizedBatch(BATCH, real))
    torch.manual_seed(3)
    divergence, _ = trainer.distillation(real)
    reward, _ = RewardLoss(reward=brightness, config=chosen)(trainer.student, BATCH)
    torch.testing.assert_close(loss, reward + 0.25 * divergence)
    assert {"reward", "reward_std", "student_loss", "score_gap"} == set(metrics)
    loss.backward()
    assert all(p.grad is None for p in trainer.distillation.auxiliary.parameters())


def test_a_resumed_run_is_exact(teacher, own, tmp_path):
    loss, batches = RewardLoss(reward=brightness, config=config()), RewardBatches([0, 1, 2], config())
    whole = RewardTrainer(make_student(teacher, own), loss)
    whole = train(whole, batches, train_step, settings(4), tmp_path / "whole", name="toy")

    class KilledError(Exception):
        pass

    def kill(progress) -> None:
        if progress.step == 3:
            raise KilledError

    cut = RewardTrainer(make_student(teacher, own), loss)
    with pytest.raises(KilledError):
        train(cut, batches, train_step, settings(4), tmp_path / "cut", name="toy", on_log=kill)
    resumed = RewardTrainer(make_student(teacher, own), loss)
    resumed = train(resumed, batches, train_step, settings(4), tmp_path / "cut", name="toy")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
