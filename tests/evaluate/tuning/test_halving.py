"""Successive halving on candidates whose quality is known."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from swiftmask.evaluate.quantities import Quantity
from swiftmask.evaluate.scorers import Generated
from swiftmask.evaluate.study import Measurement, Row
from swiftmask.evaluate.tuning.halving import (
    Goal,
    MeasureRows,
    Round,
    challenge,
    compare,
    halve,
    survivors,
)

SCORE = Quantity(key="score", label="score", higher_is_better=True)
DISTANCE = Quantity(key="fd", label="fd", higher_is_better=False)
ANY_COST = Goal(cost=1e12, objective=SCORE)


def _never(what: Sequence[int], seeds: list[int]) -> Generated:
    raise AssertionError("these tests measure without drawing")


def _candidate(name: str, flops: int = 10) -> Row:
    return Row(
        name=name,
        series="",
        steps=4,
        full_steps=4,
        calls={},
        flops=flops,
        fingerprint=name,
        generate=_never,
    )


def _measuring(scores: dict[str, Sequence[float]], log: list[tuple[list[str], int]]) -> MeasureRows:
    """Scores by evaluation seed, the last one for all that follow; fd is 10 - score."""

    def measure(rows: Sequence[Row], num_seeds: int) -> list[Measurement]:
        log.append(([row.name for row in rows], num_seeds))
        return [
            Measurement(
                row=row.name,
                seed=seed,
                num_images=3,
                values={
                    "score": scores[row.name][min(seed, len(scores[row.name]) - 1)],
                    "fd": 10 - scores[row.name][min(seed, len(scores[row.name]) - 1)],
                },
                floors={},
                ms=float(row.flops),
                peak_memory_bytes=1,
            )
            for seed in range(num_seeds)
            for row in rows
        ]

    return measure


def _names(found: Round) -> list[str]:
    return [tried.name for tried in found.tried]


def test_half_go_and_images_double() -> None:
    scores = {f"c{i}": [i / 10] for i in range(8)} | {"full": [1.0], "less": [0.5]}
    log: list[tuple[list[str], int]] = []
    found = halve(
        [_candidate(f"c{i}") for i in range(8)],
        [_candidate("less"), _candidate("full")],
        ANY_COST,
        _measuring(scores, log),
        keep=1,
    )
    assert _names(found) == ["c7"]
    assert [(len(names), num_seeds) for names, num_seeds in log] == [(10, 1), (5, 2), (3, 4)]
    assert log[-1][0] == ["c7", "c6", "full"], "the worse full model was dropped, too"
    assert found.tried[0].images == 4 * 3
    assert found.tried[0].loss.mean == pytest.approx(0.3)


def test_luck_with_few_images_is_found_out() -> None:
    scores = {"lucky": [0.9, 0.1], "good": [0.8], "bad": [0.2], "worse": [0.1], "full": [1.0]}
    pool = [_candidate(name) for name in ("worse", "lucky", "bad", "good")]
    found = halve(pool, [_candidate("full")], ANY_COST, _measuring(scores, []), keep=1)
    assert _names(found) == ["good"]


def test_a_bound_on_the_loss_takes_the_cheapest_that_meets_it() -> None:
    scores = {"dear": [0.995], "cheap": [0.992], "bad": [0.9], "full": [1.0]}
    pool = [_candidate("dear", 9), _candidate("bad", 1), _candidate("cheap", 5)]
    rows = [*pool, _candidate("full")]
    bounds = replace(ANY_COST, max_loss=0.01)
    found = compare(pool, [_candidate("full")], bounds, _measuring(scores, [])(rows, 2))
    assert _names(found) == ["cheap", "dear", "bad"]
    assert [bounds.met_by(tried) for tried in found.tried] == [True, True, False]


def test_the_safest_survives_cheap_luck() -> None:
    scores = {"a": [0.999], "b": [0.998], "c": [0.997], "safe": [1.0], "full": [1.0]}
    pool = [_candidate(name, flops) for name, flops in (("a", 1), ("b", 2), ("c", 3), ("safe", 9))]
    rows = [*pool, _candidate("full")]
    bounds = replace(ANY_COST, max_loss=0.01)
    found = compare(pool, [_candidate("full")], bounds, _measuring(scores, [])(rows, 1))
    assert [tried.name for tried in survivors(found.tried, 2)] == ["a", "safe"]


def test_costs_that_differ_in_the_fourth_digit_are_equal() -> None:
    scores = {"uniform": [0.995], "optimised": [0.999], "full": [1.0]}
    pool = [_candidate("uniform", 11_350_000), _candidate("optimised", 11_351_000)]
    rows = [*pool, _candidate("full")]
    bounds = replace(ANY_COST, max_loss=0.01)
    found = compare(pool, [_candidate("full")], bounds, _measuring(scores, [])(rows, 1))
    assert _names(found) == ["optimised", "uniform"]


def test_losses_are_paired_and_lower_is_better_for_distances() -> None:
    scores = {"one": [0.8, 0.4], "full": [1.0, 0.6]}
    pool, full = [_candidate("one")], [_candidate("full")]
    measured = _measuring(scores, [])([pool[0], full[0]], 2)
    loss = compare(pool, full, ANY_COST, measured).tried[0].loss
    assert loss.mean == pytest.approx(0.2 / 0.8)
    assert loss.spread == pytest.approx(0.0), "the same picture by picture, however the seeds differ"
    of_distance = compare(pool, full, replace(ANY_COST, objective=DISTANCE), measured).tried[0].loss
    assert of_distance.mean == pytest.approx(0.2 / 9.2)


def test_a_bound_in_milliseconds_is_of_what_was_measured() -> None:
    scores = {"slow": [0.99], "fast": [0.9], "full": [1.0]}
    pool, full = [_candidate("slow", 20), _candidate("fast", 5)], [_candidate("full", 30)]
    goal = Goal(cost=15, objective=SCORE, in_ms=True)
    assert all(goal.may_afford(one) for one in pool), "nothing is known before it is measured"
    found = compare(pool, full, goal, _measuring(scores, [])([*pool, *full], 1))
    assert _names(found) == ["fast", "slow"]
    assert [goal.met_by(tried) for tried in found.tried] == [True, False]


def test_the_best_so_far_is_not_dropped_for_less_than_it_was_kept_for() -> None:
    scores = {
        "champion": [0.5, 0.9],
        "second": [0.6],
        "lucky": [0.8, 0.1],
        "better": [0.7, 0.95],
        "worse": [0.2],
        "full": [1.0],
    }
    log: list[tuple[list[str], int]] = []
    measure, full = _measuring(scores, log), [_candidate("full")]
    pool = [_candidate("champion"), _candidate("second")]
    found = compare(pool, full, ANY_COST, measure([*pool, *full], 4))
    assert _names(found) == ["champion", "second"]
    log.clear()
    newcomers = [_candidate(name) for name in ("lucky", "better", "worse")]
    met = challenge(found, newcomers, ANY_COST, measure, keep=2)
    assert _names(met) == ["better", "champion"]
    assert log == [
        (["lucky", "better", "worse", "full"], 1),
        (["champion", "second", "lucky", "better", "full"], 4),
    ]
    assert (met.num_seeds, met.full) == (4, full)
    assert _names(challenge(met, [], ANY_COST, measure, keep=1)) == ["better"]


def test_two_candidates_of_one_name_are_refused() -> None:
    one, full = _candidate("one"), [_candidate("full")]
    other = replace(one, fingerprint="other")
    with pytest.raises(ValueError, match="two candidates are called one"):
        halve([one, other], full, ANY_COST, _measuring({"one": [0.1], "full": [1.0]}, []), keep=1)


def test_nothing_to_compare_or_to_lose() -> None:
    with pytest.raises(ValueError, match="nothing to compare: 0 candidates"):
        halve([], [_candidate("full")], ANY_COST, _measuring({}, []), keep=1)
    zero = {"one": [0.0], "full": [0.0]}
    with pytest.raises(ValueError, match="nothing to lose"):
        halve([_candidate("one")], [_candidate("full")], ANY_COST, _measuring(zero, []), keep=1)


def test_a_cost_at_the_bound_meets_it() -> None:
    assert Goal(cost=1000, objective=SCORE).affords(1002)
    assert not Goal(cost=1000, objective=SCORE).affords(1010)
