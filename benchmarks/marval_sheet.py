"""The same seeds drawn by a MAR and by its students, one line each: a PNG.

    python benchmarks/marval_sheet.py mar-scenes --marval auto mar-scenes-marval-rl --out sheet.png

The first line is the teacher with its own sampler, then with the DDIM step counts asked for, then the
students.
"""

import argparse
from pathlib import Path

from torch import Tensor

from swiftmask.api import load
from swiftmask.cli import measure
from swiftmask.cli.rows import Rows, series_of
from swiftmask.core.protocol import SamplingOptions
from swiftmask.data.scenes import NUM_CLASSES
from swiftmask.evaluate.presets import Settings
from swiftmask.evaluate.sheets import side_by_side
from swiftmask.pipeline import Pipeline


def draw(pipeline: Pipeline, steps: int, count: int) -> Tensor:
    """Images [B, 3, H, W] of classes spread over all, seeds from 0 on."""
    labels = [(7 * index + 4) % NUM_CLASSES for index in range(count)]
    result = pipeline.generate(labels, seeds=list(range(count)), steps=steps, output_type="pt")
    assert isinstance(result.images, Tensor)
    return result.images


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="bundled name or model folder of the teacher")
    parser.add_argument("--marval", nargs="*", default=[], help="students, by name or folder")
    parser.add_argument("--ddim-steps", type=int, nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=16, help="decode steps")
    parser.add_argument("--images", type=int, default=10, help="in a line")
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    chosen = _arguments()
    base = load(chosen.model)
    ways = [Settings(steps=chosen.steps)]
    ways += [
        Settings(steps=chosen.steps, sampling=SamplingOptions(denoising_steps=count, sampler="ddim"))
        for count in chosen.ddim_steps
    ]
    students = [measure.own(chosen.model, student, "marval") for student in chosen.marval]
    ways += [Settings(steps=chosen.steps, marval=student) for student in students]
    rows_of = Rows(base)
    lines = [draw(rows_of.pipeline(way), chosen.steps, chosen.images) for way in ways]
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_bytes(side_by_side(lines, scale=chosen.scale))
    for number, way in enumerate(ways, start=1):
        print(f"line {number}: {series_of(way)}")


if __name__ == "__main__":
    main()
