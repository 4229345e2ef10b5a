"""`swiftmask demo`: the full model and the accelerated one on the same seeds, with a report."""

from bisect import bisect_left
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from swiftmask.cli import measure
from swiftmask.cli.loading import say_where
from swiftmask.core.writing import write_bytes, write_text

if TYPE_CHECKING:
    from swiftmask.cli.rows import Rows
    from swiftmask.evaluate.presets import Settings
    from swiftmask.evaluate.report import Picture
    from swiftmask.evaluate.summary import Report, RowSummary
    from swiftmask.pipeline import Pipeline

_BASELINE_DENOISING = 10
"""DDIM steps of a diffusion head that spares as many as it can without being trained."""

_RESULTS = Path("benchmarks/results")

NO_DIFFERENCE = 1.06
"""Ratios of cost or time below this are called none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Generate with the full model, the accelerated one, and the full one at equal cost: same seeds.

    The accelerator is the model's own (its shortcut, its MARVAL student or its Speed-RL weights) unless one
    is named. Writes OUT/report.html (one file, no network), OUT/*.png and OUT/demo.json. Finished parts are
    used again. `bench` measures more rows and more images.

    Attributes:
        out: folder of the report.
        model: bundled name, model folder or Hugging Face repo id.
        shortcut: accelerate with this shortcut.
        marval: accelerate with this MARVAL student.
        speed_rl: accelerate with these Speed-RL weights.
        steps: decode steps (default: the model's own).
        full_steps: how many of them still run the backbone with a shortcut; how many there are with Speed-RL
            (default: three eighths of the steps).
        images: images per row, for scoring. The default takes a minute or two on two cores; it shows large
            differences only.
        shown: images side by side.
        device: where to run: cpu, cuda, mps, or auto (cuda where there is a GPU, else cpu).
        results: folder of reports of `swiftmask bench`, RESULTS/MODEL/report.json, whose frontier is shown
            (default: benchmarks/results, if the model was measured there).
        overwrite: replace the report of another model, of other settings or of bench.
        json: print JSON instead of a table.
    """

    out: Path = Path("demo")
    model: str = "maskgit-scenes"
    shortcut: str | None = None
    marval: str | None = None
    speed_rl: str | None = None
    steps: int | None = None
    full_steps: int | None = None
    images: int = 60
    shown: int = 6
    device: str = "auto"
    results: Path | None = None
    overwrite: bool = False
    json: bool = False

    def run(self) -> int:
        """Measure, generate, write, print."""
        from swiftmask.api import load
        from swiftmask.registry import bundled_names

        if not 1 <= self.shown <= self.images:
            raise ValueError(f"--shown must be between 1 and --images ({self.images}), got {self.shown}")
        if self.model == Demo().model and self.model not in bundled_names("model"):
            raise ValueError(
                f"the bundled weights of {self.model} are missing: reinstall the package, train them "
                f"(swiftmask train {self.model}), or pass --model FOLDER"
            )
        base = load(self.model, device=self.device)
        if self.results is not None and not self._benchmark(base).exists():
            raise FileNotFoundError(
                f"no measurements of {base.name} in --results {self.results} (expected "
                f"{self._benchmark(base)}): swiftmask bench --out {self._benchmark(base).parent} writes them"
            )
        measure.refuse_another_report(
            self.out / "demo.json",
            base.name,
            measure.command_of("demo", self),
            overwrite=self.overwrite,
        )
        return self._show(base)

    def _show(self, base: "Pipeline") -> int:
        from swiftmask.cli.asked import Asked
        from swiftmask.cli.rows import Rows
        from swiftmask.cli.scoring import measured, resumable, study_of
        from swiftmask.cli.shown import filmstrip, gallery_of, generate_shown, timeline_of
        from swiftmask.evaluate.report import html_report
        from swiftmask.evaluate.sheets import side_by_side
        from swiftmask.evaluate.study import Sample
        from swiftmask.evaluate.summary import summarise, write_report

        rows_of = Rows(base)
        method, ways = self._ways(base, rows_of)
        sample = Sample(num_images=self.images, num_seeds=1, batch_size=min(96, self.images))
        scorer = Asked(scorer=("scenes",))
        study = study_of(
            base, scorer, sample, self.out / "parts", diverse=False, compared=method == "shortcut"
        )
        full = rows_of.row(ways[0])
        rows = [full, *(rows_of.row(way, reference=full.name if way.shortcut else None) for way in ways[1:])]
        say_where(base)
        with resumable():
            found = measured(study, rows, sample, "generating and scoring")
        origin = measure.origin(base.name, measure.command_of("demo", self))
        report = summarise(rows, found, sample, origin, study.scorers)
        shown = study.requests.shown(self.shown, self.images)
        generated = generate_shown(rows, shown)
        pipelines = [rows_of.pipeline(way) for way in ways]
        page = html_report(
            f"{report.model}: full and accelerated",
            found_in(report, method),
            report,
            self._frontier(base),
            gallery=gallery_of(generated, shown, study.requests),
            timelines=[timeline_of(p, row, shown) for p, row in zip(pipelines, rows, strict=True)],
        )
        write_report(report, self.out / "demo.json")
        write_bytes(self.out / "grid.png", side_by_side(list(generated.values())))
        write_bytes(self.out / "timeline.png", filmstrip(pipelines[1], shown))
        write_text(self.out / "report.html", page)
        if self.json:
            measure.print_json(asdict(report))
        else:
            measure.print_report(report)
            print(f"report: {self.out / 'report.html'}")
        return 0

    def _ways(self, base: "Pipeline", rows_of: "Rows") -> "tuple[str, list[Settings]]":
        """The method; then the full model, the accelerated one, the full one with as many steps as that
        costs, and unguided.

        Errors: ValueError for more full steps than there are steps, if no accelerator is named and the model
        has none, or if several are named.
        """
        from swiftmask.core.protocol import SamplingOptions
        from swiftmask.evaluate.presets import Settings

        steps = base.steps if self.steps is None else self.steps
        full_steps = max(1, 3 * steps // 8) if self.full_steps is None else self.full_steps
        measure.check_budget(steps, full_steps)
        method, source = self._accelerator()
        full = baseline = Settings(steps=steps)
        match method:
            case "shortcut":
                fast = replace(full, shortcut=source, full_steps=full_steps)
            case "marval":
                fast = replace(full, marval=source)
                few = SamplingOptions(sampler="ddim", denoising_steps=_BASELINE_DENOISING)
                baseline = replace(full, sampling=few)
            case _:
                fast = Settings(speed_rl=source, steps=full_steps)
        equal = _at_cost_of(rows_of.flops(fast), baseline, rows_of)
        ways = [full, fast] if equal == full else [full, fast, equal]
        if measure.is_guided(base):
            ways.append(replace(full, sampling=SamplingOptions(guidance=1.0)))
        return method, ways

    def _accelerator(self) -> tuple[str, str]:
        """The method, and where its weights are."""
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
        method, source = (named + own)[0]
        return method, measure.own(self.model, source, method)

    def _benchmark(self, base: "Pipeline") -> Path:
        """A report of `bench`."""
        return (self.results or _RESULTS) / measure.file_name(base) / "report.json"

    def _frontier(self, base: "Pipeline") -> "list[Picture]":
        """The plot of the whole benchmark, if it was run."""
        from swiftmask.evaluate.frontier import frontier_png
        from swiftmask.evaluate.report import Picture
        from swiftmask.evaluate.summary import read_report

        path = self._benchmark(base)
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


_METHODS = {
    "shortcut": "the learned shortcut replaces most runs of its backbone by a small network",
    "marval": "the MARVAL student generates a token in one call of the head instead of a hundred",
    "speed-rl": "Speed-RL tuned its weights to need fewer steps",
}


def found_in(report: "Report", method: str) -> str:
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
        + f" N = {report.N} images a row are few, so that the demo is short: swiftmask bench measures more."
    )


def _cost(row: "RowSummary", full: "RowSummary") -> str:
    ratio = full.gflop / row.gflop
    if max(ratio, 1 / ratio) < NO_DIFFERENCE:
        return "takes no fewer operations"
    return f"takes {ratio:.1f} times fewer operations" if ratio > 1 else f"takes {1 / ratio:.1f} times more"


def _time(row: "RowSummary", full: "RowSummary") -> str:
    ratio = full.ms / row.ms
    times = f"{row.ms:.0f} ms an image against {full.ms:.0f} ms on this machine"
    if max(ratio, 1 / ratio) < NO_DIFFERENCE:
        return f"is as fast ({times})"
    return f"is {'faster' if ratio > 1 else 'slower'} ({times})"


def _score(row: "RowSummary") -> str:
    return f"{100 * row.values['score'].mean:.1f} %"


def _difference(one: "RowSummary", other: "RowSummary", num_images: int) -> str:
    """Between two judge scores of one evaluation seed."""
    from swiftmask.evaluate.summary import share_noise

    ours, theirs = one.values["score"].mean, other.values["score"].mean
    noise = share_noise(ours, theirs, num_images)
    if abs(ours - theirs) <= noise:
        return f"no difference that N = {num_images} can show (± {100 * noise:.1f})"
    more = "more" if ours > theirs else "fewer"
    return f"{more}, beyond the noise of N = {num_images} (± {100 * noise:.1f})"


def _at_cost_of(wanted: int, baseline: "Settings", rows_of: "Rows") -> "Settings":
    """The baseline with as many steps, at most its own, as come nearest to so many operations."""
    assert baseline.steps is not None

    def flops(steps: int) -> int:
        return rows_of.flops(replace(baseline, steps=steps))

    enough = 1 + bisect_left(range(1, baseline.steps), wanted, key=flops)
    nearest = min({max(1, enough - 1), enough}, key=lambda steps: abs(flops(steps) - wanted))
    return replace(baseline, steps=nearest)
