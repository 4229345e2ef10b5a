"""Where to put the full steps: uniform, front-loaded and optimised placements, at equal cost and seeds.

    python benchmarks/placement.py maskgit-scenes --budgets 16:4 16:6 24:6 --images 192 --seeds 3

The optimised placements are the exact minima of a drift measured on one run of the full model: of features,
or of the tokens drawn from them (swiftmask/evaluate/tuning). Rows of one budget run the backbone equally
often; what they cost differs in the fourth digit. Beside them stand the full model at the same steps, which
tokens are compared with, and both drifts of each placement. A killed run continues.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from swiftmask.api import load
from swiftmask.cli import measure
from swiftmask.cli.asked import Asked
from swiftmask.cli.bench import parse_budget
from swiftmask.cli.rows import Rows
from swiftmask.cli.scoring import measured, study_of
from swiftmask.cli.search import Search, placements_of
from swiftmask.cli.tune import Space
from swiftmask.core.schedule import uniform_full_steps
from swiftmask.core.writing import write_text
from swiftmask.evaluate.presets import Settings
from swiftmask.evaluate.study import Row, Sample
from swiftmask.evaluate.summary import Report, summarise
from swiftmask.evaluate.tuning.feature_drift import DISTANCES


def accelerators(chosen: argparse.Namespace) -> list[Settings]:
    """Those whose drift depends on the last full step alone."""
    found = [Settings(caching="reuse")] if chosen.reuse else []
    if chosen.shortcut != "none":
        found.insert(0, Settings(shortcut=measure.own(chosen.model, chosen.shortcut, "shortcut")))
    return found


def placement_drift(drift_SS: Tensor, full_steps: list[int]) -> float:
    """The total drift of the steps that are not full, each from the last full one."""
    ends = [*full_steps[1:], len(drift_SS)]
    segments = (drift_SS[i, i + 1 : end] for i, end in zip(full_steps, ends, strict=True))
    return sum(float(segment.sum()) for segment in segments)


def placements(search: Search, chosen: argparse.Namespace) -> Iterator[tuple[Row, dict[str, object]]]:
    """Every row that is compared, with where its full steps are and how far features drift there."""
    for steps, num_full in map(parse_budget, chosen.budgets):
        for accelerator in accelerators(chosen):
            settings = replace(accelerator, steps=steps)
            for placement in placements_of(settings, search.rows_of.base):
                placed = search.placed(settings, num_full, placement)
                full = placed.full_steps
                indices = uniform_full_steps(steps, full) if isinstance(full, int) else list(full or ())
                drifts = {
                    name: placement_drift(search.drift(settings, name), indices)
                    for name in DISTANCES
                    if name in placements_of(settings, search.rows_of.base)
                }
                row = replace(search.rows_of.row(placed, placement=placement), reference=f"vanilla-{steps}")
                yield row, {"placement": placement, "full_steps_at": indices, "drift": drifts}


def compare(chosen: argparse.Namespace, command: str) -> tuple[Report, list[dict[str, object]]]:
    """The study of all rows, and what is known of each placement."""
    base = load(chosen.model, dtype=chosen.dtype, device=chosen.device)
    sample = Sample(num_images=chosen.images, num_seeds=chosen.seeds, batch_size=chosen.batch)
    folder = chosen.out / f"{measure.file_name(base)}-placement.partial"
    study = study_of(base, Asked(), sample, folder, compared=True)
    all_steps = sorted({steps for steps, _ in map(parse_budget, chosen.budgets)})
    search = Search(
        rows_of=Rows(base),
        study=study,
        space=Space(steps=tuple(all_steps)),
        searched=sample,
        confirming=sample,
        drift_images=chosen.drift_images,
    )
    full = [search.rows_of.row(Settings(steps=steps)) for steps in all_steps]
    placed = list(placements(search, chosen))
    rows = [*full, *(row for row, _ in placed)]
    found = measured(study, rows, sample, "generating and scoring")
    report = summarise(rows, found, sample, measure.origin(base.name, command), study.scorers)
    return report, [{"name": row.name, **facts} for row, facts in placed]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="bundled name, model folder or Hugging Face repo id")
    parser.add_argument("--budgets", nargs="+", default=["16:4", "16:6"], help="as STEPS:FULL")
    parser.add_argument("--shortcut", default="auto", help="name, folder, or none")
    parser.add_argument("--reuse", action="store_true", help="compare feature reuse, too")
    parser.add_argument("--images", type=int, default=192, help="per row and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--drift-images", type=int, default=48)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


def main() -> None:
    chosen = _arguments()
    report, facts = compare(chosen, " ".join(["python", *sys.argv]))
    path = chosen.out / f"{report.model.replace('/', '--')}-placement.json"
    write_text(path, json.dumps({**asdict(report), "placements": facts}, indent=2) + "\n")
    measure.print_report(report)
    for fact in facts:
        print(f"{fact['name']}: full steps at {fact['full_steps_at']}, drift {fact['drift']}")


if __name__ == "__main__":
    main()
