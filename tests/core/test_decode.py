"""The decode loop: golden decodes of the reference, and what must hold for every decode."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import FeatureFn, Noise, SamplingOptions, UnmaskRule
from swiftmask.core.rng import ReplayNoise, SeededNoise
from swiftmask.core.schedule import uniform_full_steps, valeo_schedule, with_full_steps
from swiftmask.core.types import Canvas, Record, Schedule, Trajectory
from swiftmask.core.unmask import as_recorded, by_confidence, by_order, order_masked
from swiftmask.methods.shortcut import Shortcut, ShortcutFeatures
from swiftmask.models.maskgit import MaskGIT

GOLDEN = Path(__file__).parents[1] / "golden"
L = 16
LABELS, SEEDS = [3, 1, 6, 0], [7, 0, 2**40, 11]


def _schedule(model: MaskGIT, *, num_steps: int = 6, num_masked: int = L, guidance: float = 3.8) -> Schedule:
    return model.schedule(num_steps, num_masked=num_masked, options=SamplingOptions(guidance=guidance))


def _decode(
    model: MaskGIT,
    labels: list[int],
    noise: Noise,
    *,
    schedule: Schedule | None = None,
    canvas: Canvas | None = None,
    unmask: UnmaskRule = by_confidence,
    features_fn: FeatureFn | None = None,
    records: list[Record] | None = None,
) -> Trajectory:
    schedule = _schedule(model) if schedule is None else schedule
    return decode(
        model,
        prepare_condition(model, model.encode(labels), schedule),
        schedule,
        noise,
        canvas=model.blank(len(labels)) if canvas is None else canvas,
        features_fn=FullFeatures(model) if features_fn is None else features_fn,
        unmask=unmask,
        on_step=None if records is None else records.append,
    )


def _known_half() -> Canvas:
    """Eight known tokens, elsewhere in every image."""
    masked_BL = torch.rand(len(LABELS), L).argsort(1) < 8
    return Canvas(torch.randint(32, masked_BL.shape).masked_fill(masked_BL, 32), masked_BL, 8)


def _golden_draws(tensors: dict[str, Tensor], run: str) -> list[Tensor]:
    return [tensors[key] for key in sorted(tensors) if key.startswith(f"in.{run}.uniform.")]


@pytest.mark.parametrize("run", ["full", "shortcut"])
def test_golden_decode(run: str, golden_maskgit: MaskGIT, golden_shortcut: Shortcut) -> None:
    """Token for token the reference's image, from its recorded draws."""
    tensors = load_file(GOLDEN / "maskgit_generate.safetensors")
    config = json.loads((GOLDEN / "maskgit_generate.json").read_text())["config"]
    settings = config["runs"][run]
    schedule = valeo_schedule(
        L,
        settings["step"],
        guidance=1 + config["guidance"],
        temperature=1 / config["softmax_temperature"],
        choice_temperature=config["gumbel_temperature"],
    )
    features_fn = FullFeatures(golden_maskgit)
    if settings["use_shortcut"]:
        schedule = with_full_steps(schedule, uniform_full_steps(settings["step"], settings["budget"]))
        features_fn = ShortcutFeatures(golden_maskgit, golden_shortcut)
    trajectory = _decode(
        golden_maskgit,
        tensors["in.labels"].tolist(),
        ReplayNoise(_golden_draws(tensors, run)),
        schedule=schedule,
        features_fn=features_fn,
    )
    assert torch.equal(trajectory.tokens_BL, tensors[f"out.{run}.ids"].flatten(1))


@pytest.mark.parametrize("guidance", [1.0, 3.8])
def test_a_image_depends_on_its_seed_only(guidance: float, golden_maskgit: MaskGIT) -> None:
    """One batch, any split of it (as over ranks), and each image alone."""
    schedule = _schedule(golden_maskgit, guidance=guidance)

    def tokens(rows: slice) -> Tensor:
        noise = SeededNoise(SEEDS[rows], L)
        return _decode(golden_maskgit, LABELS[rows], noise, schedule=schedule).tokens_BL

    whole_BL = tokens(slice(None))
    assert len({tuple(row.tolist()) for row in whole_BL}) == len(SEEDS)
    for splits in ((0, 2, 4), (0, 1, 4), (0, 1, 2, 3, 4)):
        parts = [tokens(slice(a, b)) for a, b in zip(splits, splits[1:], strict=False)]
        assert torch.equal(torch.cat(parts), whole_BL)


def test_equal_seeds_and_labels_draw_the_same_image(golden_maskgit: MaskGIT) -> None:
    one, other, third = _decode(golden_maskgit, [3, 3, 3], SeededNoise([5, 5, 6], L)).tokens_BL
    assert torch.equal(one, other)
    assert not torch.equal(one, third)


@pytest.mark.parametrize("num_steps", [1, 2, 6, L])
def test_exact_number_of_tokens_per_step(num_steps: int, golden_maskgit: MaskGIT) -> None:
    schedule, records = _schedule(golden_maskgit, num_steps=num_steps), []
    trajectory = _decode(golden_maskgit, LABELS, SeededNoise(SEEDS, L), schedule=schedule, records=records)
    assert [record.step for record in records] == list(schedule)
    for step, record in zip(schedule, records, strict=True):
        assert (record.before.masked_BL.sum(1) == step.num_masked_before).all()
        assert (record.after.masked_BL.sum(1) == step.num_masked_after).all()
        assert ((trajectory.decided_at_BL == step.index).sum(1) == step.num_decided).all()
    assert ((trajectory.tokens_BL >= 0) & (trajectory.tokens_BL < 32)).all()


@pytest.mark.parametrize("inpaint", [False, True])
def test_every_canvas_follows_from_the_trajectory(inpaint: bool, golden_maskgit: MaskGIT) -> None:
    canvas = _known_half() if inpaint else golden_maskgit.blank(len(LABELS))
    schedule = _schedule(golden_maskgit, num_masked=8 if inpaint else L)
    records: list[Record] = []
    trajectory = _decode(
        golden_maskgit, LABELS, SeededNoise(SEEDS, L), schedule=schedule, canvas=canvas, records=records
    )
    for record in records:
        rebuilt = trajectory.canvas_at(record.step)
        assert torch.equal(rebuilt.tokens_BL, record.before.tokens_BL)
        assert torch.equal(rebuilt.masked_BL, record.before.masked_BL)
        assert torch.equal(trajectory.decided_in(record.step), record.decision.positions_BN)
        assert rebuilt.num_masked == record.before.num_masked == record.step.num_masked_before
    finished = records[-1].after
    assert torch.equal(finished.tokens_BL, trajectory.tokens_BL)
    assert finished.num_masked == 0
    assert not finished.masked_BL.any()


def test_known_tokens_stay(golden_maskgit: MaskGIT) -> None:
    canvas = _known_half()
    trajectory = _decode(
        golden_maskgit,
        LABELS,
        SeededNoise(SEEDS, L),
        schedule=_schedule(golden_maskgit, num_masked=8),
        canvas=canvas,
    )
    known_BL = ~canvas.masked_BL
    assert torch.equal(trajectory.tokens_BL[known_BL], canvas.tokens_BL[known_BL])
    assert (trajectory.tokens_BL < 32).all()
    assert torch.equal(trajectory.decided_at_BL == -1, known_BL)
    assert trajectory.log_prob_BL is not None
    assert (trajectory.log_prob_BL[known_BL] == 0).all()
    assert (trajectory.log_prob_BL[canvas.masked_BL] < 0).all()


@pytest.mark.parametrize("inpaint", [False, True])
def test_replay_gives_the_same_log_probs(inpaint: bool, golden_maskgit: MaskGIT) -> None:
    """... and a gradient, which is what reinforcement learning needs."""
    canvas = _known_half() if inpaint else golden_maskgit.blank(len(LABELS))
    schedule = _schedule(golden_maskgit, num_masked=8 if inpaint else L)
    first = _decode(golden_maskgit, LABELS, SeededNoise(SEEDS, L), schedule=schedule, canvas=canvas)
    policy = copy.deepcopy(golden_maskgit).requires_grad_(True)
    again = _decode(
        policy, LABELS, ReplayNoise([]), schedule=schedule, canvas=canvas, unmask=as_recorded(first)
    )
    assert torch.equal(again.tokens_BL, first.tokens_BL)
    assert torch.equal(again.decided_at_BL, first.decided_at_BL)
    assert first.log_prob_BL is not None
    assert again.log_prob_BL is not None
    torch.testing.assert_close(again.log_prob_BL, first.log_prob_BL)
    again.log_prob_BL.sum().backward()
    assert policy.transformer.tok_emb.weight.grad is not None


def test_temperature_and_replay_agree(golden_maskgit: MaskGIT) -> None:
    schedule = [replace(step, temperature=0.5) for step in _schedule(golden_maskgit)]
    first = _decode(golden_maskgit, LABELS, SeededNoise(SEEDS, L), schedule=schedule)
    again = _decode(golden_maskgit, LABELS, ReplayNoise([]), schedule=schedule, unmask=as_recorded(first))
    torch.testing.assert_close(again.log_prob_BL, first.log_prob_BL)


def test_orders_decide_in_order(golden_maskgit: MaskGIT) -> None:
    order_BM = torch.arange(L).flip(0).expand(len(LABELS), L)
    trajectory = _decode(golden_maskgit, LABELS, SeededNoise(SEEDS, L), unmask=by_order(order_BM))
    assert (trajectory.decided_at_BL.gather(1, order_BM).diff(dim=1) >= 0).all()
    assert (trajectory.tokens_BL < 32).all()


def test_null_branch_is_prepared_only_when_guided(golden_maskgit: MaskGIT) -> None:
    condition = golden_maskgit.encode(LABELS)
    for guidance, num_branches in ((1.0, 1), (3.8, 2)):
        prepared = prepare_condition(golden_maskgit, condition, _schedule(golden_maskgit, guidance=guidance))
        assert prepared.num_branches == num_branches
        assert len(prepared) == len(LABELS)


def test_one_batched_forward_a_step_and_a_head_at_masked_positions(
    golden_maskgit: MaskGIT, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer, rows, scored = golden_maskgit.transformer, [], []
    forward, logits = transformer.forward, transformer.logits
    monkeypatch.setattr(transformer, "forward", lambda ids: rows.append(len(ids)) or forward(ids))
    monkeypatch.setattr(
        transformer, "logits", lambda features, at: scored.append(features.shape[:2]) or logits(features, at)
    )
    schedule = _schedule(golden_maskgit)
    _decode(golden_maskgit, LABELS, SeededNoise(SEEDS, L), schedule=schedule)
    assert rows == [2 * len(LABELS)] * len(schedule)
    assert scored == [(len(LABELS), step.num_masked_before) for step in schedule]


@pytest.mark.parametrize("guidance", [1.0, 3.8])
@pytest.mark.parametrize("rule", ["confidence", "fixed", "random", "recorded"])
def test_nothing_is_read_back_from_the_device(rule: str, guidance: float, golden_maskgit: MaskGIT) -> None:
    """On the meta device there is nothing to read: `.item()`, `nonzero` or a boolean index would raise."""
    model = copy.deepcopy(golden_maskgit).to("meta")
    batch, canvas = len(LABELS), model.blank(len(LABELS))
    noise, schedule = SeededNoise(SEEDS, L, model.device), _schedule(model, guidance=guidance)
    unmask: UnmaskRule = by_confidence
    if rule == "fixed":
        order_BL = torch.arange(L, device=model.device).expand(batch, L)
        unmask = by_order(order_masked(order_BL, canvas))
    elif rule == "random":
        unmask = by_order(order_masked(noise.permutation(L), canvas))
    elif rule == "recorded":
        unmask = as_recorded(_decode(model, LABELS, noise, schedule=schedule))
    trajectory = _decode(model, LABELS, noise, schedule=schedule, unmask=unmask)
    assert trajectory.tokens_BL.is_meta
    assert trajectory.tokens_BL.shape == (batch, L)
    rebuilt = trajectory.canvas_at(schedule[2])
    assert rebuilt.tokens_BL.is_meta
