"""`swiftmask demo`: the full model and the accelerated one on the same seeds, with a report."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from swiftmask.cli import measure
from swiftmask.cli.evaluate import Evaluate
from swiftmask.cli.report_pictures import draw_first, draw_shown, draw_timeline, gallery_of, scenes_requests

if TYPE_CHECKING:
    from torch import Tensor

    from swiftmask.evaluate.quality import Row
    from swiftmask.evaluate.report import Picture
    from swiftmask.evaluate.summary import QualityReport
    from swiftmask.pipeline import Pipeline, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Draw with the full model, the accelerated one, and the full one at equal cost: same seeds.

    Writes OUT/report.html (one file, no network), OUT/*.png and OUT/demo.json. Finished parts are used again.

    Attributes:
        out: folder of the report.
        model: bundled name, model folder or Hugging Face repo id.
        shortcut: the accelerator ("auto" is the model's own).
        steps: decode steps.
        full_steps: how many of them still run the backbone in the accelerated model.
        pictures: pictures per row, for judging.
        shown: pictures side by side.
        device: where to run ("cpu", "cuda").
        results: folder of `swiftmask bench quality`; its frontier is shown if it is there.
        json: print JSON instead of a table.
    """

    out: Path = Path("demo")
    model: str = "maskgit-scenes"
    shortcut: str = "auto"
    steps: int = 16
    full_steps: int = 6
    pictures: int = 192
    shown: int = 8
    device: str = "cpu"
    results: Path = Path("benchmarks/results")
    json: bool = False

    def run(self) -> int:
        """Measure, draw, write, print."""
        from swiftmask.evaluate.quality import Sample
        from swiftmask.evaluate.sheets import side_by_side
        from swiftmask.evaluate.summary import write_report

        measure.check_budget(self.steps, self.full_steps)
        if not 1 <= self.shown <= self.pictures:
            raise ValueError(f"--shown must be between 1 and --pictures ({self.pictures}), got {self.shown}")
        sample = Sample(num_pictures=self.pictures, num_seeds=1, batch_size=min(96, self.pictures))
        base, fast = self._pipelines()
        rows, pipelines = self._rows(base, fast)
        store = measure.store_of(base, self.out / "measurements.partial")
        report = measure.study(rows, sample, store, model=base.name, command=self.command())
        drawn = draw_shown(rows, scenes_requests(rows[0], self.pictures), self.shown)
        write_report(report, self.out / "demo.json")
        _write_bytes(self.out / "grid.png", side_by_side(list(drawn.values())))
        self._write_timeline(rows[1], pipelines[1])
        self._write_page(report, rows, pipelines, drawn)
        if self.json:
            measure.print_json(asdict(report))
        else:
            measure.print_table(report)
            print(f"report: {self.out / 'report.html'}")
        return 0

    def command(self) -> str:
        """What makes this report again."""
        defaults = Demo()
        words: list[object] = ["demo"]
        for name in ("model", "shortcut", "steps", "full_steps", "pictures", "shown", "device"):
            value = getattr(self, name)
            words += [] if value == getattr(defaults, name) else [f"--{name.replace('_', '-')}", value]
        return measure.command_line(*words, "--out", self.out)

    def _pipelines(self) -> "tuple[Pipeline, Pipeline]":
        from swiftmask.api import accelerate, load

        if self.model == Demo().model:
            _require_bundled(self.model)
        shortcut = measure.shortcut_of(self.model, self.shortcut)
        base = load(self.model, device=self.device)
        measure.require_scenes(base)
        return base, accelerate(base, shortcut=shortcut, full_steps=self.full_steps)

    def _rows(self, base: "Pipeline", fast: "Pipeline") -> "tuple[list[Row], list[Pipeline]]":
        """The full model, the accelerated one, and the full one with as many steps as that cost pays for."""
        alone = Evaluate(model=self.model, steps=self.steps, pictures=self.pictures, seeds=1)
        full = measure.row_of(base, self.steps, series="vanilla", command=alone.command())
        command = replace(alone, shortcut=self.shortcut, full_steps=self.full_steps).command()
        quick = measure.row_of(fast, self.steps, series="shortcut", command=command, reference=full.name)
        fewer = max(1, min(self.steps, round(self.steps * quick.flops / full.flops)))
        if fewer == self.steps:
            return [full, quick], [base, fast]
        equal = measure.row_of(base, fewer, series="vanilla", command=replace(alone, steps=fewer).command())
        return [full, quick, equal], [base, fast, base]

    def _write_timeline(self, row: "Row", pipeline: "Pipeline") -> None:
        """The first shown picture filling up, in one line of pictures."""
        from swiftmask.evaluate.sheets import filmstrip

        result = draw_first(pipeline, row.steps, scenes_requests(row, self.pictures))
        images_S3HW, masked_SL = _canvases(pipeline, result, row.steps)
        _write_bytes(self.out / "timeline.png", filmstrip(images_S3HW, masked_SL, pipeline.model.spec.grid))

    def _write_page(
        self,
        report: "QualityReport",
        rows: "list[Row]",
        pipelines: "list[Pipeline]",
        drawn: "dict[str, Tensor]",
    ) -> None:
        from swiftmask.evaluate.report import html_report
        from swiftmask.evaluate.summary import write_text

        requests = scenes_requests(rows[0], self.pictures)
        page = html_report(
            f"{report.model}: full and accelerated",
            _found(report),
            report,
            self._frontier(report),
            gallery=gallery_of(drawn, requests),
            timelines=[draw_timeline(p, r, requests) for p, r in zip(pipelines, rows, strict=True)],
        )
        write_text(self.out / "report.html", page)

    def _frontier(self, report: "QualityReport") -> "list[Picture]":
        """The plot of the whole benchmark, if it was run."""
        from swiftmask.evaluate.frontier import frontier_png
        from swiftmask.evaluate.report import Picture
        from swiftmask.evaluate.summary import read_report

        path = self.results / f"{report.model.replace('/', '--')}-quality.json"
        if not path.exists():
            return []
        benchmark = read_report(path)
        picture = Picture(
            heading="The whole frontier",
            png=frontier_png(benchmark),
            alt="Judge score and Frechet distance against operations per picture",
            caption=f"From {path}: N = {benchmark.N}, {benchmark.seeds} evaluation seeds, {benchmark.date}, "
            f"commit {benchmark.commit}. {benchmark.command}",
        )
        _write_bytes(self.out / "frontier.png", picture.png)
        return [picture]


def _write_bytes(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _require_bundled(model: str) -> None:
    from swiftmask.registry import bundled_names

    if model not in bundled_names("model"):
        raise ValueError(
            f"the bundled weights of {model} are missing: reinstall the package, train them "
            f"(swiftmask train {model}), or pass --model FOLDER"
        )


def _found(report: "QualityReport") -> str:
    full, fast = report.rows[:2]
    cheaper = full.gflop_per_picture / fast.gflop_per_picture
    return (
        "A masked image generator fills a canvas of tokens step by step; the learned shortcut replaces most "
        f"runs of its backbone by a small network. Here {fast.steps} steps with {fast.full_steps} full ones "
        f"cost {cheaper:.1f} times less work than {full.steps} full steps "
        f"({full.ms_per_picture:.0f} ms became {fast.ms_per_picture:.0f} ms per picture on this machine); "
        f"the independent judge finds {100 * fast.score.mean:.1f} % of the asked-for facts in its pictures, "
        f"against {100 * full.score.mean:.1f} % for the full model."
    )


def _canvases(pipeline: "Pipeline", result: "Result", steps: int, count: int = 8) -> "tuple[Tensor, Tensor]":
    """The first picture's canvas at several steps: pictures [S, 3, H, W] and what is masked [S, L]."""
    import torch

    chosen = sorted({round(index * steps / max(1, count - 1)) for index in range(count)})
    tokens_L, decided_at_L = result.trajectory.tokens_BL[0], result.trajectory.decided_at_BL[0]
    masked_SL = torch.stack([decided_at_L >= step for step in chosen])
    codes_SL = tokens_L.expand_as(masked_SL).masked_fill(masked_SL, 0)  # greyed out, but a code is wanted
    with torch.no_grad():
        return pipeline.model.to_pixels(codes_SL).float().cpu(), masked_SL.cpu()
