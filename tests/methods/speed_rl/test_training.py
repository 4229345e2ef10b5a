"""Rounds and updates of Speed-RL on a toy policy: ratio one, exact resume, shares that add up, learning."""

import threading
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from swiftmask.methods.speed_rl import FilterConfig, Prompts, Rounds, SpeedRLTrainer
from swiftmask.methods.speed_rl.policy import trained_parameters
from swiftmask.methods.speed_rl.rounds import diversity, prompt_indices, share, step_counts
from swiftmask.training.loop import Progress, train
from swiftmask.training.setup import train_step

PROMPTS = Prompts([0, 1, 2])
NO_FILTER = FilterConfig(percentile=0)


@pytest.fixture
def start(transparent, scorers) -> Callable[..., tuple[SpeedRLTrainer, Rounds]]:
    def make(config, training, **options) -> tuple[SpeedRLTrainer, Rounds]:
        trainer = SpeedRLTrainer(transparent, config)
        return trainer, Rounds(trainer, PROMPTS, scorers, training, **options)

    return make


def weights(trainer: SpeedRLTrainer) -> dict[str, Tensor]:
    return trained_parameters(trainer.policy)


def gradients(trainer: SpeedRLTrainer, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(weights(trainer).values())))


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_first_update_has_ratio_one_and_a_loss_of_minus_the_advantages(
    start, make_config, make_training, level
):
    """Recorded likelihoods are recomputed ones; centred advantages sum to nothing."""
    config = make_config(
        num_iterations=2, importance_sampling_level=level, kl_estimator="none", filter=NO_FILTER
    )
    trainer, rounds = start(config, make_training(2))
    loss, metrics = train_step(trainer, rounds.batch(0, 0, 1))
    assert loss.item() == pytest.approx(0.0, abs=1e-4)
    assert metrics["ratio/mean"].item() == pytest.approx(1.0, abs=1e-4)
    assert metrics["ratio/max"].item() == pytest.approx(1.0, abs=1e-3)
    assert metrics["clip_ratio/region_mean"] == 0
    assert trainer.round.advantages_B.abs().max() > 0.5
    assert sum(g.norm() for g in gradients(trainer, loss)) > 1e-3


def test_one_update_a_round_needs_no_old_likelihoods(start, make_config, make_training):
    """Its gradient is that of an update which compares with them."""
    found = []
    for num_iterations in (1, 2):
        config = make_config(num_iterations=num_iterations, filter=NO_FILTER)
        trainer, rounds = start(config, make_training(2))
        found.append(gradients(trainer, train_step(trainer, rounds.batch(0, 0, 1))[0]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_second_pass_sees_the_policy_move(start, make_config, make_training):
    trainer, rounds = start(make_config(num_iterations=2, filter=NO_FILTER), make_training(2))
    optimizer = torch.optim.SGD(list(weights(trainer).values()), 0.5)
    ratios = []
    for step in range(2):
        loss, metrics = train_step(trainer, rounds.batch(step, 0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ratios.append(metrics["ratio/max"].item())
    assert ratios[0] == pytest.approx(1.0, abs=1e-3)
    assert ratios[1] > 1.01


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"kl_estimator": "none"}])
def test_without_a_divergence_no_reference_runs(start, make_config, make_training, settings):
    trainer, rounds = start(make_config(filter=NO_FILTER, **settings), make_training(1))
    batch = rounds.batch(0, 0, 1)
    trainer._base.value.transformer = None  # whoever asks it for features fails
    assert train_step(trainer, batch)[1]["kl"] == 0
    trainer.config = make_config(filter=NO_FILTER)
    with pytest.raises((AttributeError, TypeError)):
        train_step(trainer, batch)


def test_a_round_is_told_by_its_metrics(start, make_config, make_training):
    config = make_config(speed_weight=0.1, filter=NO_FILTER)
    trainer, rounds = start(config, make_training(3))
    loss, metrics = train_step(trainer, rounds.batch(0, 0, 1))
    assert {
        "reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "entropy/step_0", "entropy/step_1",
        "entropy/step_2", "entropy/step_3",
        "policy_loss", "clip_ratio/low_mean", "clip_ratio/low_min", "clip_ratio/high_mean",
        "clip_ratio/high_max", "clip_ratio/region_mean", "num_tokens", "steps/mean", "steps/hist/2",
        "steps/hist/4", "reward_by_steps/2", "reward_by_steps/4", "speed_reward", "quality_reward",
        "filter/kept_frac", "ratio/mean", "ratio/max", "lr", "time/rollout", "time/reward", "diversity",
        "rewards/even/mean", "rewards/even/std", "rewards/brightness/mean",
        "rewards/brightness/std",
    } == set(metrics)  # fmt: skip
    assert metrics["steps/mean"] == 3
    assert metrics["steps/hist/2"] == 0.5
    assert metrics["speed_reward"] == 0.5
    assert metrics["num_tokens"] == 8 * 16
    halves = (metrics["reward_by_steps/2"] + metrics["reward_by_steps/4"]) / 2
    torch.testing.assert_close(halves, metrics["quality_reward"])
    torch.testing.assert_close(metrics["rewards/even/mean"], metrics["quality_reward"])
    assert {"step_time", "time/update"} <= set(rounds.batch(1, 0, 1).metrics)


def test_diversity_is_the_share_of_differing_codes():
    tokens_PKL = torch.tensor([[[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 0, 0]]])
    assert diversity(tokens_PKL).item() == pytest.approx((1 / 4 + 2 / 4 + 2 / 4) / 3)
    assert diversity(tokens_PKL[:, :1].expand(2, 4, -1)) == 0


def test_dropped_images_are_not_replayed_and_the_rest_share_their_weight(start, make_config, make_training):
    trainer, rounds = start(make_config(filter=NO_FILTER), make_training(1))
    rounds.batch(0, 0, 1)
    trainer.round.kept_B[:4] = 0
    lessons = rounds._lessons(0, 0, 0, 1)
    replayed = [tokens_L for lesson in lessons for tokens_L in lesson.replay.trajectory.tokens_BL.tolist()]
    assert sorted(replayed) == sorted(trainer.round.tokens_BL[4:].tolist())
    assert [weight for lesson in lessons for weight in lesson.weights_B.tolist()] == [0.25] * 4


def test_processes_share_what_is_kept(start, make_config, make_training):
    """Three images of two processes; with one image the second still has something to run."""
    trainer, rounds = start(make_config(filter=NO_FILTER), make_training(1))
    rounds.batch(0, 0, 1)
    trainer.round.kept_B[:5] = 0
    weights = [
        [w for lesson in rounds._lessons(0, 0, rank, 2) for w in lesson.weights_B.tolist()] for rank in (0, 1)
    ]
    assert weights == [[pytest.approx(2 / 3)] * 2, [pytest.approx(2 / 3)]]
    trainer.round.kept_B[:7] = 0
    weights = [
        [w for lesson in rounds._lessons(0, 0, rank, 2) for w in lesson.weights_B.tolist()] for rank in (0, 1)
    ]
    assert weights == [[2.0], [0.0]]


@pytest.mark.parametrize("kept", [[0, 3], [7], [0, 1, 2, 5, 6]])
def test_every_kept_image_weighs_the_same_whoever_has_it(start, make_config, make_training, kept):
    """Of four processes some have none: what they run instead must not count, above all not the first
    image, if that one is kept.
    """
    trainer, rounds = start(make_config(filter=NO_FILTER), make_training(1))
    rounds.batch(0, 0, 1)
    trainer.round.kept_B.zero_()
    trainer.round.kept_B[kept] = 1
    total_B = torch.zeros(8)
    for rank in range(4):
        for lesson in rounds._lessons(0, 0, rank, 4):
            for tokens_L, weight in zip(lesson.replay.trajectory.tokens_BL, lesson.weights_B, strict=True):
                same_B = (trainer.round.tokens_BL == tokens_L).all(dim=1)
                assert same_B.sum() == 1, "images differ, so that one can be told from another"
                total_B[same_B] += weight / 4
    expected_B = torch.zeros(8)
    expected_B[kept] = 1 / len(kept)
    torch.testing.assert_close(total_B, expected_B)


def test_a_round_without_anything_to_learn_changes_nothing(transparent, scorers, make_config, make_training):
    """Every image is the same, so every group is dropped: a loss of zero, not NaN."""
    with torch.no_grad():
        transparent.transformer.bias[:, 3] = 1e4
    trainer = SpeedRLTrainer(transparent, make_config(speed_weight=0.1))
    loss, metrics = train_step(trainer, Rounds(trainer, PROMPTS, scorers, make_training(1)).batch(0, 0, 1))
    assert metrics["filter/kept_frac"] == 0
    assert metrics["frac_reward_zero_std"] < 1  # step counts differ, quality does not
    assert loss == 0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(trainer, loss))


def parallel(call: Callable[[int, Callable[[Tensor], Tensor]], Tensor], num_ranks: int) -> list[Tensor]:
    """Runs `call(rank, gather)` once a rank, in threads that meet at every gather as processes would."""
    shelf: list[Tensor] = [torch.zeros(())] * num_ranks
    barrier = threading.Barrier(num_ranks, timeout=60)
    results: list[Tensor] = [torch.zeros(())] * num_ranks

    def gather_for(rank: int) -> Callable[[Tensor], Tensor]:
        def gather(rows: Tensor) -> Tensor:
            shelf[rank] = rows
            barrier.wait()
            every = torch.cat(shelf)
            barrier.wait()
            return every

        return gather

    def work(rank: int) -> None:
        results[rank] = call(rank, gather_for(rank))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_two_processes_learn_what_one_does(start, make_config, make_training, kept):
    """Averaged over processes, as gradients are, also where one of them has less to learn from."""
    config = make_config(num_iterations=2, steps_per_generation=2, generation_batch_size=16, filter=NO_FILTER)
    alone, rounds = start(config, make_training(4))
    rounds.batch(0, 0, 1)
    others: list[SpeedRLTrainer] = [start(config, make_training(4))[0] for _ in range(2)]
    keep_B = (torch.arange(16) % 8 < 8 * kept).float()
    alone.round.kept_B.mul_(keep_B)

    def call(rank: int, gather) -> Tensor:
        trainer = others[rank]
        shared = Rounds(trainer, PROMPTS, rounds._scorers, make_training(4), gather_rows=gather)
        shared.batch(0, rank, 2)
        trainer.round.kept_B.mul_(keep_B)
        lessons = shared.batch(1, rank, 2)
        return torch.cat([g.flatten() for g in gradients(trainer, train_step(trainer, lessons)[0])])

    shares = parallel(call, 2)
    for trainer in others:
        for name, value in alone.round.named_buffers():
            torch.testing.assert_close(value, trainer.round.get_buffer(name), rtol=1e-4, atol=1e-5)
    loss, _ = train_step(alone, rounds.batch(1, 0, 1))
    expected = torch.cat([g.flatten() for g in gradients(alone, loss)])
    torch.testing.assert_close((shares[0] + shares[1]) / 2, expected, rtol=1e-3, atol=1e-5)
    assert (shares[0] - shares[1]).norm() > 0.1 * expected.norm()


class KilledError(Exception):
    pass


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_run_is_exact_in_the_middle_of_a_round(start, make_config, make_training, method, tmp_path):
    """Rounds of three updates, checkpoints every second one; the window of the filter comes back too."""
    config = make_config(
        method, num_iterations=3, filter=FilterConfig(percentile=30, window=8, active_after=2)
    )
    training = make_training(6)
    trainer, rounds = start(config, training)
    whole = train(trainer, rounds.batch, train_step, training, tmp_path / "whole", name="toy")

    def kill(progress: Progress) -> None:
        if progress.step == 5:
            raise KilledError

    trainer, rounds = start(config, training)
    with pytest.raises(KilledError):
        train(trainer, rounds.batch, train_step, training, tmp_path / "cut", name="toy", on_log=kill)
    torch.manual_seed(99)
    trainer, rounds = start(config, training)
    resumed = train(trainer, rounds.batch, train_step, training, tmp_path / "cut", name="toy")
    state = resumed.state_dict()
    assert set(state) == set(whole.state_dict())
    for name, value in whole.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert int(whole.filter.num_seen) == 4


def test_only_what_is_trained_is_saved(start, make_config, make_training):
    trainer, _ = start(make_config("lora"), make_training(1))
    saved = {name for name in trainer.state_dict() if "codec" not in name}
    adapters = {f"policy.{name}" for name in weights(trainer)}
    buffers = {name for name, _ in trainer.named_buffers() if name.startswith(("round.", "filter."))}
    assert saved == adapters | buffers


@pytest.mark.parametrize(("method", "rate"), [("lora", 5e-2), ("full", 1e-2)])
def test_rewards_rise(start, make_config, make_training, method, rate, tmp_path):
    config = make_config(method, generation_batch_size=16, num_generations=8, beta=0.0, filter=NO_FILTER)
    training = make_training(12, batch_size=16, learning_rate=rate, save_every=12)
    trainer, rounds = start(config, training)
    seen: list[Progress] = []
    train(trainer, rounds.batch, train_step, training, tmp_path, name="toy", on_log=seen.append)
    rewards = [progress.metrics["quality_reward"] for progress in seen[1:]]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15
    few, many = (seen[-1].metrics[f"reward_by_steps/{count}"] for count in (2, 4))
    assert few > 0.7 * many


def test_every_group_holds_every_step_count_equally_often():
    def counts(choices: tuple[int, ...], number: int = 0) -> list[list[int]]:
        return step_counts(choices, 50, 8, torch.Generator().manual_seed(number))

    assert counts((16,)) == [[16] * 8] * 50
    assert all(Counter(group) == {8: 2, 12: 2, 16: 2, 24: 2} for group in counts((8, 12, 16, 24)))
    left_over = Counter()
    for group in counts((4, 8, 16)):
        assert set(Counter(group).values()) == {2, 3}
        left_over += Counter(group)
    assert max(left_over.values()) - min(left_over.values()) < 40


def test_prompts_come_all_in_turn_in_new_orders():
    shown = [index for number in range(5) for index in prompt_indices(number, 3, 5, seed=1)]
    epochs = [shown[first : first + 5] for first in (0, 5, 10)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_images_are_shared_evenly():
    assert [list(share(range(4, 10), rank, 3)) for rank in range(3)] == [[4, 5], [6, 7], [8, 9]]
    with pytest.raises(ValueError, match="7 images cannot be shared evenly by 2 processes"):
        share(range(7), 0, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_estimator": "k4"}, "kl_estimator must be one of ce, k3, none, got 'k4'"),
        ({"num_generations": 1}, "num_generations must be a whole number between 2 and"),
        ({"generation_batch_size": 10}, r"must be a multiple of num_generations \(4\), got 10"),
        ({"steps_per_generation": 3}, r"must be a multiple of steps_per_generation \(3\), got 8"),
        ({"num_iterations": 0}, "num_iterations must be a whole number between 1 and 1000, got 0"),
        ({"step_counts": (0, 4)}, "step_counts must be values, each|step_counts must be whole numbers"),
        ({"step_counts": (1, 2, 3, 4, 5)}, r"at most num_generations \(4\) numbers"),
    ],
)
def test_impossible_settings_are_refused(make_config, settings, message):
    with pytest.raises(ValueError, match=message):
        make_config(**settings)


def test_settings_of_the_loop_must_fit(start, make_config, make_training):
    with pytest.raises(ValueError, match="batch_size must be .* = 8, got 4"):
        start(make_config(), make_training(1, batch_size=4))
    with pytest.raises(ValueError, match="take precision 'bf16' or 'no', got 'bf16-weights'"):
        start(make_config(num_iterations=2), make_training(1, precision="bf16-weights"))


def test_a_model_that_cannot_score_is_refused(golden_mar, make_config):
    with pytest.raises(ValueError, match="mar has no log_prob; speed_rl needs one"):
        SpeedRLTrainer(golden_mar, make_config())


def test_a_config_without_step_counts_is_refused(base, make_config):
    with pytest.raises(ValueError, match="step_counts must hold at least one"):
        SpeedRLTrainer(base, make_config(step_counts=()))
