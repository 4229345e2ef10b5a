"""What a step of Lumina-DiMOO costs, full, by shortcut and by ML-Cache: released widths, few layers.

    python benchmarks/dimoo_speed.py --layers 2 4 --batch 1 4 --dtype bfloat16 --json out.json

Random weights, 512x512 pictures, the step in the middle of 64. Everything is timed in turn in one run, beside
the machine's matmul peak; `rows` has the keys of `swiftmask bench speed`, once with the shortcut as the
accelerated step and once with ML-Cache. What the deeper model costs more than the shallower one is what
layers cost; that gives the figures for all 32 (the shortcut does not depend on the depth).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from dimoo_straightforward import STEPS, at_depth, random_model, shallower

from swiftmask.core.protocol import FeatureFn
from swiftmask.core.schedule import uniform_full_steps
from swiftmask.evaluate.memory import reset_peak_memory
from swiftmask.evaluate.speed import (
    SpeedReport,
    SpeedSetup,
    Timing,
    matmul_tasks,
    middle_step_tasks,
    speed_report,
    time_in_turn,
)
from swiftmask.methods.caching import MLCacheFeatures, ml_cache_full_steps
from swiftmask.methods.shortcut import RotaryShortcut, ShortcutFeatures
from swiftmask.methods.shortcut.weights import RELEASED_ROTARY_SHORTCUT
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.lumina_dimoo.weights import RELEASED, random_backbone
from swiftmask.pipeline import Pipeline
from swiftmask.recipes.provenance import commit, machine

SHORTCUT_BUDGET = 11
"""Full steps of 64, as released."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeModel:
    """Computed from the measured depths, in milliseconds of a whole batch.

    Attributes:
        shortcut_share, ml_cache_share: time of a decode over that of one with all steps full.
    """

    layers: int
    batch: int
    full_step_ms: float
    shortcut_step_ms: float
    ml_cache_step_ms: float
    shortcut_share: float
    ml_cache_share: float


def measure(
    model: LuminaDiMOO,
    shortcut: RotaryShortcut,
    layers: Sequence[int],
    *,
    batch: int,
    num_steps: int,
    shortcut_budget: int,
    repeats: int,
    matmul_sizes: tuple[int, ...] = (2048, 4096),
) -> tuple[list[SpeedReport], WholeModel]:
    """Reports of the deepest model (shortcut, ML-Cache), and the figures for the released depth.

    Errors: ValueError for fewer than two depths.
    """
    if len(set(layers)) < 2:
        raise ValueError(f"two depths tell what a layer costs, got {list(layers)}")
    setups: dict[tuple[str, int], SpeedSetup] = {}
    for depth in layers:
        base = shallower(model, depth)
        ways: dict[str, tuple[FeatureFn, list[int]]] = {
            "shortcut": (ShortcutFeatures(base, shortcut), uniform_full_steps(num_steps, shortcut_budget)),
            "ml-cache": (MLCacheFeatures(base), ml_cache_full_steps(num_steps)),
        }
        for name, (features_fn, full_steps) in ways.items():
            pipeline = Pipeline(base, features_fn=features_fn, full_steps=tuple(full_steps), steps=num_steps)
            setups[name, depth] = replace(
                speed_setup(pipeline, batch), repeats=repeats, matmul_sizes=matmul_sizes
            )
    timings = _time(setups)
    deepest = max(layers)
    peaks = {name: timing for name, timing in timings.items() if name.startswith("matmul")}
    reports = [
        speed_report(
            setups[name, deepest],
            peaks | {"full": timings[f"full {deepest}"], "fast": timings[f"{name} {deepest}"]},
            model_name=f"lumina-dimoo (random weights), {deepest} layers, 512x512, {name}",
            machine=machine(),
            command=" ".join(["python", *sys.argv]),
        )
        for name in ("shortcut", "ml-cache")
    ]
    return reports, _whole_model(timings, layers, batch, reports)


def speed_setup(pipeline: Pipeline, batch: int) -> SpeedSetup:
    """The step in the middle of the pipeline's schedule, with its operations counted."""
    assert pipeline.features_fn is not None
    schedule = pipeline.schedule()
    index = max(1, len(schedule) // 2)
    before, step = replace(schedule[index - 1], full=True), schedule[index]
    vanilla = replace(pipeline, features_fn=None, full_steps=None, _flops={})
    both = pipeline.flops([before, replace(step, full=False)])
    model = pipeline.model
    assert isinstance(model, LuminaDiMOO)
    return SpeedSetup(
        model=model,
        accelerated=pipeline.features_fn,
        schedule=schedule,
        full_flops=batch * vanilla.flops([replace(step, full=True)]),
        fast_flops=batch * (both - vanilla.flops([before])),
        dtype=model.backbone.model.transformer.wte.weight.dtype,
        batch=batch,
    )


def _time(setups: dict[tuple[str, int], SpeedSetup]) -> dict[str, Timing]:
    """Full and accelerated steps by name and depth, and matmuls, in turn."""
    any_setup = next(iter(setups.values()))
    tasks = matmul_tasks(any_setup)
    for (name, depth), setup in setups.items():
        full, fast = middle_step_tasks(setup)
        tasks |= {f"full {depth}": full, f"{name} {depth}": fast}
    reset_peak_memory(any_setup.model.device)
    return time_in_turn(tasks, any_setup.model.device, repeats=any_setup.repeats)


def _whole_model(
    timings: dict[str, Timing], layers: Sequence[int], batch: int, reports: Sequence[SpeedReport]
) -> WholeModel:
    full_ms, cache_ms = (
        at_depth(RELEASED.depth, {depth: timings[f"{name} {depth}"].median_ms for depth in layers})
        for name in ("full", "ml-cache")
    )
    shortcut_ms = reports[0].shortcut_step_ms
    shares = [
        (report.full_steps + (report.steps - report.full_steps) * fast_ms / full_ms) / report.steps
        for report, fast_ms in zip(reports, (shortcut_ms, cache_ms), strict=True)
    ]
    return WholeModel(
        layers=RELEASED.depth,
        batch=batch,
        full_step_ms=full_ms,
        shortcut_step_ms=shortcut_ms,
        ml_cache_step_ms=cache_ms,
        shortcut_share=shares[0],
        ml_cache_share=shares[1],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the report here as well")
    return parser.parse_args()


def main() -> None:
    chosen = _arguments()
    dtype = getattr(torch, chosen.dtype)
    model = random_model(random_backbone(max(chosen.layers), dtype=dtype, device=chosen.device))
    shortcut = RotaryShortcut(RELEASED_ROTARY_SHORTCUT).eval().requires_grad_(False)
    shortcut.to(device=chosen.device, dtype=dtype)
    rows: list[SpeedReport] = []
    whole: list[WholeModel] = []
    for batch in chosen.batch:
        reports, figures = measure(
            model,
            shortcut,
            chosen.layers,
            batch=batch,
            num_steps=STEPS,
            shortcut_budget=SHORTCUT_BUDGET,
            repeats=chosen.repeats,
        )
        rows += reports
        whole.append(figures)
        _print(reports, figures)
    report = {
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "rows": [asdict(row) for row in rows],
        "whole_model": [asdict(figures) for figures in whole],
    }
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


def _print(reports: Sequence[SpeedReport], figures: WholeModel) -> None:
    shortcut, cache = reports
    print(
        f"batch {shortcut.batch}: full step {shortcut.full_step_ms:.0f} ms "
        f"({100 * shortcut.peak_share:.0f} % of the matmul peak), "
        f"shortcut {shortcut.shortcut_step_ms:.1f} ms, ml-cache {cache.shortcut_step_ms:.1f} ms, "
        f"peak {shortcut.peak_memory_bytes / 1e9:.1f} GB"
    )
    print(
        f"  {figures.layers} layers, computed: full step {figures.full_step_ms:.0f} ms, a decode by shortcut "
        f"{figures.shortcut_share:.2f} of all full, by ml-cache {figures.ml_cache_share:.2f}"
    )


if __name__ == "__main__":
    main()
