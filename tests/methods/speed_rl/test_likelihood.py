"""Scores of recorded images: those of the decode, and gradients through the right branch."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.core.types import Trajectory
from swiftmask.core.unmask import as_recorded
from swiftmask.methods.speed_rl.likelihood import (
    ACTIVATIONS,
    Scorer,
)
from swiftmask.methods.speed_rl.objective import KL_ESTIMATORS
from swiftmask.methods.speed_rl.rollouts import Replay, as_planned

WHAT = [0, 2, 1]


@pytest.fixture
def drawn(base) -> Trajectory:
    schedule = base.schedule(4, num_masked=16, options=SamplingOptions())
    with torch.no_grad():
        return as_planned(base, WHAT, [5, 6, 7], schedule)


@pytest.fixture
def replay(base, drawn) -> Replay:
    schedule = tuple(base.schedule(4, num_masked=16, options=SamplingOptions()))
    return Replay((0, 1, 2), WHAT, schedule, replace(drawn, log_prob_BL=None))


@pytest.fixture
def moved(base):
    """A reference that is not the policy."""
    other = copy.deepcopy(base).requires_grad_(False)
    torch.manual_seed(3)
    for parameter in other.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return other


def scorer(policy, reference, kl: str = "ce", *, run="recomputed"):
    return Scorer(
        policy=policy,
        reference=reference,
        kl=KL_ESTIMATORS[kl],
        run=ACTIVATIONS[run],
    )


def gradients(value: Tensor, model) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(model.transformer.parameters())))


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Within 1e-5 of the largest entry: rounding depends on the number of threads."""
    pairs = zip(ours, theirs, strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=1e-5 * float(b.abs().max())) for a, b in pairs)


def test_likelihoods_are_those_of_the_decode(base, drawn, replay):
    scores = scorer(base, base, "none")(replay)
    torch.testing.assert_close(scores.log_prob_BL, drawn.log_prob_BL, rtol=0, atol=1e-4)
    assert (scores.entropy_BL > 0).all()
    assert torch.equal(scores.kl_BL, torch.zeros(3, 16))


@pytest.mark.parametrize("name", ["golden_meissonic", "golden_dimoo"])
def test_likelihoods_are_those_of_the_decode_for_prompts_of_any_length(request, name):
    """Meissonic's backbone is told how many steps are left; DiMOO's prompts are shorter or longer than the
    null prompt, which moves the rows of a branch.
    """
    model, what = request.getfixturevalue(name), ["a red circle", "circle"]
    schedule = tuple(model.schedule(4, num_masked=16, options=SamplingOptions(guidance=3.0)))
    with torch.no_grad():
        drawn = as_planned(model, what, [5, 6], schedule)
        replay = Replay((0, 1), what, schedule, replace(drawn, log_prob_BL=None))
        scores = scorer(model, model)(replay)
    torch.testing.assert_close(scores.log_prob_BL, drawn.log_prob_BL, rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.kl_BL, torch.zeros(2, 16), rtol=0, atol=1e-5)


def test_gradients_are_those_of_the_whole_decode_with_the_null_branch_held_still(base, drawn, replay):
    """A decode through frozen null features, and one through both, tell the two apart."""
    ours = gradients(scorer(base, base, "none")(replay).log_prob_BL.sum(), base)

    class HeldNull(FullFeatures):
        def __call__(self, *inputs):
            features = super().__call__(*inputs)
            conditional, null = features.features_GBTD
            return replace(features, features_GBTD=torch.stack([conditional, null.detach()]))

    expected, through_both = (
        gradients(replayed_log_prob(base, replay, features_fn).sum(), base)
        for features_fn in (HeldNull(base), FullFeatures(base))
    )
    assert same(ours, expected)
    assert not same(ours, through_both)


def replayed_log_prob(model, replay: Replay, features_fn) -> Tensor:
    condition = prepare_condition(model, model.encode(replay.what), replay.schedule)
    replayed = decode(
        model,
        condition,
        replay.schedule,
        SeededNoise([0, 0, 0], 16),
        canvas=replay.trajectory.start,
        features_fn=features_fn,
        unmask=as_recorded(replay.trajectory),
    )
    assert replayed.log_prob_BL is not None
    return replayed.log_prob_BL


@pytest.mark.parametrize(
    ("guidance", "kl", "rows"),
    [
        (3.0, "ce", {"policy": 2 + 2, "reference": 2}),
        (3.0, "none", {"policy": 2 + 2, "reference": 0}),
        (1.0, "ce", {"policy": 2, "reference": 2}),
    ],
)
@pytest.mark.parametrize("run", list(ACTIVATIONS))
def test_no_row_runs_through_a_backbone_in_vain(base, moved, guidance, kl, rows, run):
    """Rows of one step of two images. The backward pass of `recomputed` repeats the conditional
    rows and no others.
    """
    ran = {"policy": 0, "reference": 0}

    def count(name: str):
        def hook(module, inputs) -> None:
            ran[name] += len(inputs[0])

        return hook

    base.transformer.register_forward_pre_hook(count("policy"))
    moved.transformer.register_forward_pre_hook(count("reference"))
    schedule = tuple(
        replace(s, guidance=guidance) for s in base.schedule(4, num_masked=16, options=SamplingOptions())
    )
    with torch.no_grad():
        drawn = as_planned(base, WHAT[:2], [5, 6], schedule)
    ran["policy"] = 0
    replay = Replay((0, 1), WHAT[:2], schedule, replace(drawn, log_prob_BL=None))
    scores = scorer(base, moved, kl, run=run)(replay)
    assert ran == {name: 4 * count for name, count in rows.items()}
    gradients((scores.log_prob_BL + scores.kl_BL).sum(), base)
    again = 2 if run == "recomputed" else 0
    assert ran == {"policy": 4 * (rows["policy"] + again), "reference": 4 * rows["reference"]}


def test_recomputing_changes_nothing(base, moved, replay):
    found = []
    for run in ACTIVATIONS:
        scores = scorer(base, moved, run=run)(replay)
        loss = scores.log_prob_BL.sum() + scores.kl_BL.sum()
        found.append((loss.detach(), gradients(loss, base)))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert same(found[0][1], found[1][1])


def test_recomputing_keeps_no_activations(base, replay, monkeypatch):
    """Bytes that autograd holds between forward and backward."""

    def held(run: str) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.untyped_storage().nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scorer(base, base, "none", run=run)(replay)
        return sum(sizes)

    assert held("recomputed") < 0.05 * held("kept")


@pytest.mark.parametrize("kl", ["ce", "k3"])
def test_divergences_are_zero_from_oneself_and_pull_towards_the_reference(base, moved, replay, kl):
    kl_BL = scorer(base, base, kl)(replay).kl_BL
    torch.testing.assert_close(kl_BL, torch.zeros(3, 16), rtol=0, atol=1e-5)
    before = scorer(base, moved, kl)(replay).kl_BL.mean()
    optimizer = torch.optim.Adam(base.transformer.parameters(), 2e-3)
    for _ in range(6):
        optimizer.zero_grad()
        scorer(base, moved, kl)(replay).kl_BL.mean().backward()
        optimizer.step()
    assert scorer(base, moved, kl)(replay).kl_BL.mean() < 0.7 * before


def test_the_divergence_is_that_of_the_conditional_branch(base, moved, replay):
    unguided = replace(replay, schedule=tuple(replace(step, guidance=1.0) for step in replay.schedule))
    torch.testing.assert_close(scorer(base, moved)(replay).kl_BL, scorer(base, moved)(unguided).kl_BL)


def test_autocast_keeps_the_gradients(base, replay):
    """Its cache of cast weights must not carry over from the null branch, which has none."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = scorer(base, base, "none")(replay).log_prob_BL.sum()
    in_bfloat16 = gradients(loss, base)
    in_float32 = gradients(scorer(base, base, "none")(replay).log_prob_BL.sum(), base)
    for ours, theirs in zip(in_bfloat16, in_float32, strict=True):
        assert (ours - theirs).norm() < 0.2 * theirs.norm() + 1e-3


def test_under_autocast_probabilities_stay_in_float32(base, moved, replay):
    """They were rounded to bfloat16, which the sums over steps refused."""
    with torch.autocast("cpu", torch.bfloat16):
        scores = scorer(base, moved)(replay)
    full = scorer(base, moved)(replay)
    for name in ("log_prob_BL", "kl_BL", "entropy_BL"):
        value, expected = getattr(scores, name), getattr(full, name)
        assert value.dtype == torch.float32
        assert (value - expected).abs().mean() < 0.1 * expected.abs().mean()
