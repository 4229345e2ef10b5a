"""The report of `bench` and `demo`: rows measured, images at equal seeds, and how one of them came about."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from swiftmask.cli import measure
from swiftmask.cli.loading import say_where
from swiftmask.cli.progress import counting
from swiftmask.cli.rows import Rows, generated
from swiftmask.cli.scoring import measured, resumable
from swiftmask.core.writing import write_bytes, write_text
from swiftmask.evaluate.frontier import frontier_png
from swiftmask.evaluate.report import (
    Gallery,
    Timeline,
    TimelineRecorder,
    findings,
    html_report,
    image_uri,
    model_card,
)
from swiftmask.evaluate.sheets import side_by_side
from swiftmask.evaluate.study import Row, Sample, Study
from swiftmask.evaluate.summary import VANILLA, Report, summarise, write_report

if TYPE_CHECKING:
    from swiftmask.cli.bench import Bench
    from swiftmask.cli.demo import Demo

_IN_GRID = 6
"""Rows of at most so many are also shown in one PNG."""


def measure_and_publish(
    options: "Bench | Demo", command: str, rows_of: Rows, rows: Sequence[Row], study: Study, sample: Sample
) -> None:
    """Measure rows, write their report to the folder `options.out`, and print it. Of several processes, the
    first one writes.
    """
    speaks = study.processes.rank == 0
    if speaks:
        say_where(rows_of.base)
    with resumable():
        found = measured(study, rows, sample, "generating and scoring")
    if not speaks:
        return
    origin, out = measure.origin(rows_of.base.name, command), options.out
    report = summarise(rows, found, sample, origin, study.scorers)
    shown = study.requests.shown(options.shown, sample.num_images)
    with counting("generating what is shown", len(rows), unit="rows") as advance:
        images = {}
        for row in rows:
            images[row.name] = row.generate(*shown).images_B3HW
            advance(1, row.name)
        first = tuple(part[:1] for part in shown)
        timelines = [_timeline(rows_of, row, *first) for row in _telling(report, rows)]
    gallery = Gallery(
        captions=tuple(f"{study.requests.text(one)}, seed {seed}" for one, seed in zip(*shown, strict=True)),
        images={name: tuple(map(image_uri, images_B3HW)) for name, images_B3HW in images.items()},
    )
    told, title = findings(report), f"{report.model}: what acceleration costs"
    write_report(report, out / "report.json")
    write_text(out / "report.md", model_card(report))
    write_bytes(out / "frontier.png", frontier_png(report))
    if len(rows) <= _IN_GRID:
        write_bytes(out / "grid.png", side_by_side(list(images.values())))
    write_text(out / "report.html", html_report(title, told, report, gallery=gallery, timelines=timelines))
    if options.json:
        measure.print_json(asdict(report))
    else:
        measure.print_report(report)
        print(f"{told}\nreport: {out / 'report.html'}")


def _telling(report: Report, rows: Sequence[Row]) -> list[Row]:
    """The full model and one row of each method, at the same budget if it was measured there."""
    full, picked = report.full, report.picked()
    wanted = {} if full is None else {full.series: full.name}
    for row in rows:
        same = picked is not None and (row.steps, row.full_steps) == (picked.steps, picked.full_steps)
        if row.series not in wanted or (same and row.series != VANILLA):
            wanted[row.series] = row.name
    return [row for row in rows if row.name in wanted.values()]


def _timeline(rows_of: Rows, row: Row, asked: list, seeds: list[int]) -> Timeline:
    """How one image fills up under a row."""
    pipeline = rows_of.pipeline(row.settings)
    recorder = TimelineRecorder(pipeline.model)
    generated(pipeline, asked, seeds, on_step=recorder)
    return recorder.timeline(row.name)
