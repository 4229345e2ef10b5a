"""Short MARVAL runs that differ in one setting each, judged on the same images: one JSON table.

    python benchmarks/marval_ablations.py --teacher runs/mar-scenes/model --updates 400 --out runs/ablations

Each variant is the recipe mar-scenes-marval, set to where it stood before these runs (`START`), with the
settings of `VARIANTS` changed, for a few hundred updates (half of them the auxiliary network's): enough to
see what hurts, too few for the quality of the recipe itself. A killed run continues: trainings resume,
finished rows are kept, `--variants` takes some.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from swiftmask.api import load
from swiftmask.cli import measure
from swiftmask.cli.asked import Asked
from swiftmask.cli.overrides import override
from swiftmask.cli.rows import Rows
from swiftmask.cli.scoring import measured, study_of
from swiftmask.core.writing import write_text
from swiftmask.evaluate.presets import Settings
from swiftmask.evaluate.quantities import Spread
from swiftmask.evaluate.study import Sample
from swiftmask.evaluate.summary import Report, summarise
from swiftmask.recipes import mar_scenes_marval

START = ("marval.first_timestep=20", "marval.mask.std=0.5", "marval.mask.lowest=0.05")
"""The wide masks and the timesteps that the recipe had, and dropped for what these runs found."""

VARIANTS: dict[str, tuple[str, ...]] = {
    "start": (),
    "head-only": ("part=head",),
    "first-term-only": ("marval.second_weight=0",),
    "guidance-1.0": ("marval.guidance=1.0",),
    "guidance-1.2": ("marval.guidance=1.2",),
    "guidance-2.0": ("marval.guidance=2.0",),
    "timesteps-to-700": ("marval.last_timestep=700",),
    "timesteps-from-300": ("marval.first_timestep=300",),
    "all-timesteps": ("marval.first_timestep=0", "marval.last_timestep=999"),
    "weight-noise-level": ("weight=noise-level",),
    "narrow-masks": ("marval.mask.std=0.25", "marval.mask.lowest=0.7"),
}
"""What each changes of a start with guidance 1.5, timesteps 20 to 980, flat weight and wide masks; narrow
ones are MAR's own."""


def train(name: str, chosen: argparse.Namespace) -> Path:
    """The student of one variant, trained or continued."""
    settings = [f"training.num_steps={chosen.updates}", f"model={chosen.teacher}", f"latents={chosen.out}"]
    recipe = override(mar_scenes_marval.recipe(), [*settings, *START, *chosen.set, *VARIANTS[name]])
    return recipe.run(chosen.out / name)


def judge(students: Mapping[str, Path], chosen: argparse.Namespace, command: str) -> Report:
    """The teacher with its own sampler, and every student, on the same seeds."""
    base = load(chosen.teacher)
    sample = Sample(num_images=chosen.images, num_seeds=chosen.seeds, batch_size=chosen.batch)
    ways = [Settings(steps=chosen.steps)]
    ways += [Settings(steps=chosen.steps, marval=str(folder)) for folder in students.values()]
    rows_of = Rows(base)
    rows = [rows_of.row(way) for way in ways]
    study = study_of(base, Asked(), sample, chosen.out / "parts")
    found = measured(study, rows, sample, "generating and scoring")
    return summarise(rows, found, sample, measure.origin(base.name, command), study.scorers)


def table(report: Report, students: Mapping[str, Path], chosen: argparse.Namespace) -> dict:
    """The report with what each variant changed and where its training ended."""
    rows = [asdict(row) for row in report.rows]
    variants = [
        {"variant": name, "settings": VARIANTS[name], "last_metrics": last_metrics(folder.parent), **row}
        for (name, folder), row in zip(students.items(), rows[1:], strict=True)
    ]
    facts = {key: value for key, value in asdict(report).items() if key != "rows"}
    label = f"short runs: {chosen.updates} updates each, half of them of the auxiliary network"
    return {**facts, "label": label, "settings_of_all": chosen.set, "teacher": rows[0], "variants": variants}


def markdown(content: dict) -> str:
    """The table as the docs show it."""

    def cells(name: str, settings: Sequence[str], row: dict) -> str:
        judge, distance = (Spread(**row["values"][column]) for column in ("score", "fd_scenes"))
        changed = ", ".join(f"`{setting}`" for setting in settings)
        return f"| {name} | {changed} | {judge.text(3)} | {distance.text(1)} |"

    lines = ["| variant | changed | judge score | fd_scenes |", "|---|---|---|---|"]
    lines += [cells("teacher", (), content["teacher"])]
    lines += [cells(row["variant"], row["settings"], row) for row in content["variants"]]
    return "\n".join(lines) + "\n"


def last_metrics(run: Path) -> dict:
    """The last line of a training's log."""
    return json.loads((run / "log.jsonl").read_text().splitlines()[-1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", required=True, type=Path, help="model folder of a mar-scenes")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--updates", type=int, default=400, help="of each variant, both networks together")
    parser.add_argument("--set", nargs="*", default=[], help="settings of all, as in training.batch_size=32")
    parser.add_argument("--steps", type=int, default=16, help="decode steps")
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/marval-ablations"))
    parser.add_argument("--json", type=Path, help="the table; default OUT/ablations.json")
    return parser.parse_args()


def main() -> None:
    chosen = _arguments()
    students = {name: train(name, chosen) for name in chosen.variants}
    report = judge(students, chosen, " ".join(["python", *sys.argv]))
    content = table(report, students, chosen)
    path = chosen.json or chosen.out / "ablations.json"
    write_text(path, json.dumps(content, indent=2) + "\n")
    write_text(path.with_suffix(".md"), markdown(content))
    for name, row in zip(["teacher", *students], report.rows, strict=True):
        print(f"{name:20s} judge {row.values['score'].text(3)}  fd_scenes {row.values['fd_scenes'].text(1)}")


if __name__ == "__main__":
    main()
