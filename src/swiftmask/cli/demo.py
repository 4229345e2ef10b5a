"""`swiftmask demo`: the full model and the accelerated one on the same seeds, with a report."""

from bisect import bisect_left
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from swiftmask.cli import measure
from swiftmask.cli.evaluate import Evaluate
from swiftmask.cli.loading import say_where
from swiftmask.cli.report_pictures import draw_first, draw_shown, draw_timeline, gallery_of
from swiftmask.cli.report_requests import Requests, scenes_requests
from swiftmask.core.writing import write_bytes, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from swiftmask.core.types import Record
    from swiftmask.evaluate.quality import Row
    from swiftmask.evaluate.report import Picture
    from swiftmask.evaluate.summary import QualityReport, RowSummary
    from swiftmask.pipeline import Pipeline

_RIVAL_DENOISING = 10
"""DDIM steps of a diffusion head that spares as many as it can without being trained."""

_FRAMES = 8
_RESULTS = Path("benchmarks/results")

NO_DIFFERENCE = 1.06
"""Ratios of cost or time below this are called none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Generate with the full model, the accelerated one, and the full one at equal cost: same seeds.

    The accelerator is the model's own (its shortcut, its MARVAL student or its Speed-RL weights) unless one
    is named. Writes OUT/report.html (one file, no network), OUT/*.png and OUT/demo.json. Finished parts are
    used again.

    Attributes:
        out: folder of the report.
        model: bundled name, model folder or Hugging Face repo id.
        shortcut: accelerate with this shortcut.
        marval: accelerate with this MARVAL student.
        speed_rl: accelerate with these Speed-RL weights.
        steps: decode steps (default: the model's own).
        full_steps: how many of them still run the backbone with a shortcut; how many there are with Speed-RL
            (default: three eighths of the steps).
        pictures: images per row, for judging.
        shown: images side by side.
        device: where to run: cpu, cuda, mps, or auto (cuda where there is a GPU, else cpu).
        results: folder of `swiftmask bench quality`, whose frontier is shown (default: benchmarks/results, if
            the model was measured there).
        overwrite: replace the report of another model, of other settings or of bench report.
        json: print JSON instead of a table.
    """

    out: Path = Path("demo")
    model: str = "maskgit-scenes"
    shortcut: str | None = None
    marval: str | None = None
    speed_rl: str | None = None
    steps: int | None = None
    full_steps: int | None = None
    pictures: int = 192
    shown: int = 8
    device: str = "auto"
    results: Path | None = None
    overwrite: bool = False
    json: bool = False

    def run(self) -> int:
        """Measure, draw, write, print."""
        if not 1 <= self.shown <= self.pictures:
            raise ValueError(f"--shown must be between 1 and --pictures ({self.pictures}), got {self.shown}")
        base = self._base()
        if self.results is not None and not self._benchmark(base.name).exists():
            raise FileNotFoundError(
                f"no measurements of {base.name} in --results {self.results} (expected "
                f"{self._benchmark(base.name).name}): swiftmask bench quality writes them"
            )
        fitted = self.fitted_to(base)
        measure.refuse_another_report(
            self.out / "demo.json", base.name, fitted.command(), overwrite=self.overwrite
        )
        return fitted._show(base)

    def fitted_to(self, base: "Pipeline") -> "Demo":
        """With what step counts that were left out mean for this model.

        Errors: ValueError for more full steps than there are steps.
        """
        steps = base.steps if self.steps is None else self.steps
        full_steps = max(1, 3 * steps // 8) if self.full_steps is None else self.full_steps
        measure.check_budget(steps, full_steps)
        return replace(self, steps=steps, full_steps=full_steps)

    def _show(self, base: "Pipeline") -> int:
        """Measure, draw, write and print, with every step count chosen."""
        from swiftmask.evaluate.quality import Sample
        from swiftmask.evaluate.sheets import side_by_side
        from swiftmask.evaluate.summary import write_report

        sample = Sample(num_pictures=self.pictures, num_seeds=1, batch_size=min(96, self.pictures))
        ways = self._ways(base)
        rows = [way.row(base, reference=self._reference(way, ways[0].row(base))) for way in ways]
        pipelines = [way.pipeline(base) for way in ways]
        store = measure.store_of(base, self.out / "measurements.partial")
        say_where(base)
        report = measure.study(rows, sample, store, model=base.name, command=self.command())
        requests = scenes_requests(rows[0], self.pictures)
        drawn = draw_shown(rows, requests, self.shown)
        write_report(report, self.out / "demo.json")
        write_bytes(self.out / "grid.png", side_by_side(list(drawn.values())))
        write_bytes(self.out / "timeline.png", filmstrip(pipelines[1], rows[1].steps, requests))
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
        names = (
            "model",
            "shortcut",
            "marval",
            "speed_rl",
            "steps",
            "full_steps",
            "pictures",
            "shown",
            "device",
        )
        for name in names:
            value = getattr(self, name)
            words += [] if value == getattr(defaults, name) else [f"--{name.replace('_', '-')}", value]
        return measure.command_line(*words, "--out", self.out)

    def _base(self) -> "Pipeline":
        from swiftmask.api import load

        if self.model == Demo().model:
            _require_bundled(self.model)
        base = load(self.model, device=self.device)
        measure.require_scenes(base)
        return base

    def _ways(self, base: "Pipeline") -> list[Evaluate]:
        """The full model, the accelerated one, the full one with as many steps as that costs, and unguided.

        Errors: ValueError if no accelerator is named and the model has none, or if several are named.
        """
        full = Evaluate(
            model=self.model, steps=self.steps, pictures=self.pictures, seeds=1, device=self.device
        )
        method, source = self._accelerator()
        match method:
            case "shortcut":
                fast, rival = replace(full, shortcut=source, full_steps=self.full_steps), full
            case "marval":
                fast = replace(full, marval=source)
                rival = replace(full, sampler="ddim", denoising_steps=(_RIVAL_DENOISING,))
            case _:
                fast, rival = replace(full, speed_rl=source, steps=self.full_steps), full
        equal = _at_cost_of(fast, rival, base)
        ways = [full, fast] if equal == full else [full, fast, equal]
        return [*ways, replace(full, unguided=True)] if measure.is_guided(base) else ways

    def _accelerator(self) -> tuple[str, str]:
        """The method, and where its weights are ("auto": beside the model)."""
        sources = {"shortcut": self.shortcut, "marval": self.marval, "speed-rl": self.speed_rl}
        named = [(method, source) for method, source in sources.items() if source is not None]
        if len(named) > 1:
            raise ValueError(f"the demo shows one accelerator: --{named[0][0]} or --{named[1][0]}, not both")
        own = [(method, "auto") for method in sources if measure.has_own(self.model, method)]
        if not named + own:
            raise ValueError(
                f"{self.model} has no accelerator of its own: "
                "name one with --shortcut, --marval or --speed-rl"
            )
        return (named + own)[0]

    def _reference(self, way: Evaluate, full: "Row") -> str | None:
        """A shortcut should draw the tokens of the full model; other weights need not."""
        return None if way.shortcut is None else full.name

    def _write_page(
        self,
        report: "QualityReport",
        rows: "list[Row]",
        pipelines: "list[Pipeline]",
        drawn: "dict[str, Tensor]",
    ) -> None:
        from swiftmask.evaluate.report import html_report

        requests = scenes_requests(rows[0], self.pictures)
        page = html_report(
            f"{report.model}: full and accelerated",
            _found(report, self._accelerator()[0]),
            report,
            self._frontier(report),
            gallery=gallery_of(drawn, requests),
            timelines=[draw_timeline(p, r, requests) for p, r in zip(pipelines, rows, strict=True)],
        )
        write_text(self.out / "report.html", page)

    def _benchmark(self, model: str) -> Path:
        """Where `bench quality` writes what it measures."""
        return (self.results or _RESULTS) / f"{model.replace('/', '--')}-quality.json"

    def _frontier(self, report: "QualityReport") -> "list[Picture]":
        """The plot of the whole benchmark, if it was run."""
        from swiftmask.evaluate.frontier import frontier_png
        from swiftmask.evaluate.report import Picture
        from swiftmask.evaluate.summary import read_report

        path = self._benchmark(report.model)
        if not path.exists():
            return []
        benchmark = read_report(path)
        picture = Picture(
            heading="The whole frontier",
            png=frontier_png(benchmark),
            alt="Judge score and Fréchet distance against operations per image",
            caption=f"From {path}: N = {benchmark.N}, {benchmark.seeds} evaluation seeds, {benchmark.date}, "
            f"commit {benchmark.commit}. {benchmark.command}",
        )
        write_bytes(self.out / "frontier.png", picture.png)
        return [picture]


def _require_bundled(model: str) -> None:
    from swiftmask.registry import bundled_names

    if model not in bundled_names("model"):
        raise ValueError(
            f"the bundled weights of {model} are missing: reinstall the package, train them "
            f"(swiftmask train {model}), or pass --model FOLDER"
        )


_METHODS = {
    "shortcut": "the learned shortcut replaces most runs of its backbone by a small network",
    "marval": "the MARVAL student generates a token in one call of the head instead of a hundred",
    "speed-rl": "Speed-RL tuned its weights to need fewer steps",
}


def _found(report: "QualityReport", method: str) -> str:
    """What the rows show: a difference within the noise, or a cost or time within 6 %, is called none."""
    full, fast, *others = report.rows
    unguided = [row for row in others if row.series.startswith("unguided")]
    return (
        f"A masked image generator fills a canvas of tokens step by step; {_METHODS[method]}. "
        f"{fast.name} {_cost(fast, full)} than {full.name}, the full model, and {_time(fast, full)}. "
        f"The judge, a reader of Scenes images that knows nothing else, finds {_score(fast)} of the stated "
        f"facts in its images, and {_score(full)} in those of {full.name}: "
        f"{_difference(fast, full, report.N)}."
        + "".join(
            f" Without guidance, {row.name} {_cost(row, full)} and scores {_score(row)}, against "
            f"{fast.name}: {_difference(row, fast, report.N)}."
            for row in unguided
        )
    )


def _cost(row: "RowSummary", full: "RowSummary") -> str:
    ratio = full.gflop_per_picture / row.gflop_per_picture
    if max(ratio, 1 / ratio) < NO_DIFFERENCE:
        return "takes no fewer operations"
    return f"takes {ratio:.1f} times fewer operations" if ratio > 1 else f"takes {1 / ratio:.1f} times more"


def _time(row: "RowSummary", full: "RowSummary") -> str:
    ratio = full.ms_per_picture / row.ms_per_picture
    times = f"{row.ms_per_picture:.0f} ms an image against {full.ms_per_picture:.0f} ms on this machine"
    if max(ratio, 1 / ratio) < NO_DIFFERENCE:
        return f"is as fast ({times})"
    return f"is {'faster' if ratio > 1 else 'slower'} ({times})"


def _score(row: "RowSummary") -> str:
    return f"{100 * row.score.mean:.1f} %"


def _difference(one: "RowSummary", other: "RowSummary", num_pictures: int) -> str:
    """Between two judge scores of one evaluation seed."""
    from swiftmask.evaluate.summary import score_noise

    noise = score_noise(one.score.mean, other.score.mean, num_pictures)
    found = one.score.mean - other.score.mean
    if abs(found) <= noise:
        return f"no difference that N = {num_pictures} can show (± {100 * noise:.1f})"
    return f"{'more' if found > 0 else 'fewer'}, beyond the noise of N = {num_pictures} (± {100 * noise:.1f})"


def _at_cost_of(fast: Evaluate, rival: Evaluate, base: "Pipeline") -> Evaluate:
    """The rival with as many steps, at most its own, as come nearest to the fast way's operations."""
    fast_pipeline, pipeline = fast.pipeline(base), rival.pipeline(base)
    wanted = fast_pipeline.flops(fast_pipeline.schedule(fast.steps))

    def flops(steps: int) -> int:
        return pipeline.flops(pipeline.schedule(steps))

    assert rival.steps is not None
    enough = 1 + bisect_left(range(1, rival.steps), wanted, key=flops)
    nearest = min({max(1, enough - 1), enough}, key=lambda steps: abs(flops(steps) - wanted))
    return replace(rival, steps=nearest)


def filmstrip(pipeline: "Pipeline", steps: int, requests: Requests) -> bytes:
    """A PNG of the first shown picture filling up."""
    import torch

    from swiftmask.evaluate.sheets import canvas_picture, side_by_side

    frames: list[Tensor] = []

    def watch(record: "Record") -> None:
        frames.append(canvas_picture(pipeline.model, record.after))

    draw_first(pipeline, steps, requests, watch)
    last = len(frames) - 1
    chosen = sorted({round(index * last / (_FRAMES - 1)) for index in range(_FRAMES)})
    return side_by_side([torch.stack([frames[index] for index in chosen])])
