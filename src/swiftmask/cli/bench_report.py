"""`swiftmask bench report`: what acceleration costs on one model, as a page, a model card and JSON."""

import json as json_module
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from swiftmask.cli import measure
from swiftmask.cli.bench import BenchQuality, Way, check_denoising, check_unguided, parse_budget
from swiftmask.cli.loading import budgets_of, own_device, say_where, shares_of
from swiftmask.cli.progress import counting, note
from swiftmask.cli.real_pictures import DIGITS, check_real, describe_reference
from swiftmask.cli.report_pictures import draw_shown, draw_timeline, gallery_of
from swiftmask.cli.report_requests import Requests, class_requests, prompt_requests, scenes_requests

if TYPE_CHECKING:
    from swiftmask.data.images import Decoding
    from swiftmask.evaluate.processes import Processes
    from swiftmask.evaluate.quality import Row, Sample
    from swiftmask.evaluate.report import FolderReport, Gallery, Timeline
    from swiftmask.evaluate.summary import QualityReport
    from swiftmask.pipeline import Pipeline

_STEPS = (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
_BUDGETS = ((1, 1 / 4), (1, 3 / 8))
"""What is measured unless something else is asked for, as shares of a model's own steps."""

_ROWS = (
    "marval",
    "speed_rl",
    "unguided",
    "temperatures",
    "schedule_powers",
    "denoising_steps",
    "ddim_steps",
    "disa",
    "only",
)
"""Options that add or choose rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """What acceleration costs, on your model: OUT/report.html, report.md (for a model card), report.json.

    Compares the full model, the same with fewer steps, its shortcut and student if it has them, and the
    training-free baselines; same seeds in every row. Quality is judged on Scenes, or against --reference with
    --extractor. A killed run continues where it was.
    """

    model: Annotated[str, tyro.conf.Positional]
    """Bundled name, model folder or Hugging Face repo id."""
    reference: Path | None = None
    """Folder of real images, or a file of their statistics (.npz, .safetensors): for a model that does not
    generate Scenes."""
    extractor: str | None = None
    """Whose features compare with them: a TorchScript file, or a Hugging Face folder (DINOv2, CLIP)."""
    crop: int | None = None
    """Crop real images to squares of this side (default: take them as they are)."""
    background: str = "white"
    """Colour behind real images that are transparent: a name, or #rrggbb."""
    ignore_orientation: bool = False
    """Leave real images as they are stored instead of turning them as EXIF says."""
    prompts: Path | None = None
    """File of prompts, for a text-to-image model: one a line, or .jsonl or .csv with columns prompt,
    negative_prompt and seed."""
    truncate: bool = False
    """Cut prompts that are too long for the model instead of refusing them."""
    classes: int | None = None
    """Generate the first so many classes (default: all the model knows)."""
    steps: tuple[int, ...] | None = None
    """Step counts of the full model (default: from a quarter of the model's own up to those)."""
    budgets: tuple[str, ...] | None = None
    """Accelerated rows, as STEPS:FULL pairs; the full model is measured at their STEPS, too (default: a
    quarter and three eighths of the model's own steps full)."""
    shortcut: str = "auto"
    """A shortcut's name or folder; auto is the model's own, if it has one; none leaves it out."""
    marval: tuple[str, ...] = ("auto",)
    """MARVAL students of a diffusion head, by name or folder; auto is the model's own, if it has one."""
    speed_rl: tuple[str, ...] = ("auto",)
    """Weights tuned for few steps, by name or folder; auto is the model's own, if it has them."""
    unguided: tuple[str, ...] | None = None
    """Rows without guidance, which halves the cost, of a model that has it: STEPS of the full model, or
    STEPS:FULL with the shortcut (default: the model's own steps)."""
    temperatures: tuple[float, ...] = ()
    """Other temperatures of the tokens, which cost nothing, as further baselines."""
    schedule_powers: tuple[float, ...] = ()
    """Other schedules, which cost nothing either; above 1, more tokens are decided early."""
    denoising_steps: tuple[str, ...] = ()
    """Of a diffusion head, ancestral, as further baselines; 8x10 is 10 of them in each of 8 decode steps."""
    ddim_steps: tuple[str, ...] = ()
    """The same, deterministic."""
    disa: tuple[str, ...] = ()
    """The same, annealed over the decode, as FIRST:LAST pairs."""
    only: tuple[str, ...] = ()
    """Names of rows to measure alone (default: all)."""
    pictures: int = 700
    """Images per row for each evaluation seed."""
    seeds: int = 3
    """Evaluation seeds."""
    batch: int = 100
    """Images at a time."""
    shown: int = 6
    """Images side by side."""
    device: str = "auto"
    """Where to run: cpu, cuda, mps, or auto (cuda where there is a GPU, else cpu)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights."""
    out: Path = Path("report")
    """Folder of the report; finished parts are kept there and used again."""
    overwrite: bool = False
    """Replace the report of another model or of other settings, or a demo."""
    json: bool = False
    """Print JSON instead of what was found."""

    def run(self) -> int:
        """Measure what is missing, draw what is shown, write, print."""
        from swiftmask.api import load
        from swiftmask.evaluate.processes import Processes
        from swiftmask.evaluate.quality import Sample

        self._check_options()
        sample = Sample(num_pictures=self.pictures, num_seeds=self.seeds, batch_size=self.batch)
        processes = Processes.here()
        base = load(self.model, dtype=self.dtype, device=own_device(processes, self.device))
        fitted = self.fitted_to(base)
        measure.refuse_another_report(
            self.out / "report.json", base.name, fitted.command(), overwrite=self.overwrite
        )
        return fitted._measure(base, sample, processes)

    def fitted_to(self, base: "Pipeline") -> "BenchReport":
        """With what step counts that were left out mean for this model."""
        return replace(
            self,
            steps=shares_of(base.steps, *_STEPS) if self.steps is None else self.steps,
            budgets=budgets_of(base.steps, *_BUDGETS) if self.budgets is None else self.budgets,
            unguided=(str(base.steps),) if self.unguided is None else self.unguided,
        )

    def _measure(self, base: "Pipeline", sample: "Sample", processes: "Processes") -> int:
        """Measure, draw, write and print, with every step count chosen."""
        if processes.rank == 0:
            say_where(base)
        if self.reference is None:
            _require_scenes(base)
            ways = self._ways(base)
            requests = scenes_requests(ways[0].row, self.pictures)
            report = self._judged(base, [way.row for way in ways], sample, processes)
        else:
            requests = self._requests(base)
            ways = [replace(way, row=replace(way.row, command=self._alone(way))) for way in self._ways(base)]
            report = self._compared(base, [way.row for way in ways], requests, sample, processes)
        if report is None or processes.rank != 0:
            return 0
        with counting("generating what is shown", len(ways), unit="rows") as advance:
            rows = [way.row for way in ways]
            drawn = draw_shown(rows, requests, self.shown, lambda name: advance(1, name))
            timelines = self._timelines(base, ways, report, requests)
        self._publish(report, gallery_of(drawn, requests), timelines)
        return 0

    def command(self) -> str:
        """What makes this report again."""
        words: list[object] = ["bench", "report", self.model]
        for flag in ("reference", "extractor", "crop", "prompts", "classes"):
            value = getattr(self, flag)
            words += [] if value is None else [f"--{flag}", value]
        words += [] if self.background == "white" else ["--background", self.background]
        words += ["--ignore-orientation"] if self.ignore_orientation else []
        words += ["--truncate"] if self.truncate else []
        words += [] if self.steps is None else ["--steps", *self.steps]
        words += [] if self.budgets is None else ["--budgets", *self.budgets]
        words += ["--shortcut", self.shortcut]
        defaults = {field.name: field.default for field in fields(self)}
        for flag in _ROWS:
            value = getattr(self, flag)
            words += [] if value in (None, defaults[flag]) else [f"--{flag.replace('_', '-')}", *value]
        words += ["--pictures", self.pictures, "--seeds", self.seeds, "--batch", self.batch]
        return measure.command_line(*words, "--dtype", self.dtype, "--device", self.device, "--out", self.out)

    def _check_options(self) -> None:
        """Errors: ValueError or FileNotFoundError for what is wrong before anything is loaded."""
        for text in self.budgets or ():
            parse_budget(text)
        check_unguided(self.unguided or ())
        self._decoding()  # complains about a background that is no colour
        check_denoising(self.denoising_steps, self.ddim_steps, self.disa)
        if (self.reference is None) != (self.extractor is None):
            raise ValueError("--reference and --extractor go together: real images, and whose features")
        if self.reference is None and (self.crop, self.prompts, self.classes) != (None, None, None):
            raise ValueError("--crop, --prompts and --classes need --reference: Scenes has its own classes")
        if self.reference is not None and not self.reference.expanduser().exists():
            raise FileNotFoundError(
                f"no such reference: {self.reference} (expected a folder of real images, or a .npz or "
                ".safetensors file of their statistics)"
            )
        for flag, least in (("shown", 1), ("classes", 1), ("crop", 1)):
            if (value := getattr(self, flag)) is not None and value < least:
                raise ValueError(f"--{flag} must be at least {least}, got {value}")

    def _decoding(self) -> "Decoding":
        from swiftmask.data.images import Decoding

        return Decoding(background=self.background, orientation=not self.ignore_orientation)

    def _ways(self, base: "Pipeline") -> list[Way]:
        """The rows of `bench quality`, with what a report never leaves out."""
        budgets = map(parse_budget, self.budgets or ())
        own = {method: measure.has_own(self.model, method) for method in ("shortcut", "marval", "speed-rl")}
        rows_of = BenchQuality(
            model=self.model,
            shortcut="none" if self.shortcut == "auto" and not own["shortcut"] else self.shortcut,
            steps=tuple(sorted({*(self.steps or ()), *(steps for steps, _ in budgets)})),
            shortcut_budgets=self.budgets,
            rivals=measure.rivals_of(base),
            unguided=self.unguided or () if measure.is_guided(base) else (),
            temperatures=self.temperatures,
            schedule_powers=self.schedule_powers,
            denoising_steps=self.denoising_steps,
            ddim_steps=self.ddim_steps,
            disa=self.disa,
            marval=tuple(name for name in self.marval if name != "auto" or own["marval"]),
            speed_rl=tuple(name for name in self.speed_rl if name != "auto" or own["speed-rl"]),
            pictures=self.pictures,
            seeds=self.seeds,
            batch=self.batch,
            device=self.device,
            dtype=self.dtype,
        )
        return self._chosen(rows_of.ways(base))

    def _chosen(self, ways: list[Way]) -> list[Way]:
        if not self.only:
            return ways
        known = [way.row.name for way in ways]
        unknown = [name for name in self.only if name not in known]
        if unknown:
            raise ValueError(f"--only {unknown[0]}: no row is called that, there are {', '.join(known)}")
        kept = [way for way in ways if way.row.name in self.only]
        # A row measured without its reference says nothing about kept tokens.
        return [
            way if way.row.reference in self.only else replace(way, row=replace(way.row, reference=None))
            for way in kept
        ]

    def _judged(
        self, base: "Pipeline", rows: "list[Row]", sample: "Sample", processes: "Processes"
    ) -> "QualityReport":
        """On Scenes, by the judge."""
        store = measure.store_of(base, self.out / f"{_file_name(base)}-quality.partial")
        return measure.study(
            rows, sample, store, model=base.name, command=self.command(), processes=processes
        )

    def _requests(self, base: "Pipeline") -> Requests:
        """Of a model that does not draw Scenes. Errors: ValueError for options of the other kind."""
        model = base.model
        if model.spec.draws == "class":
            if self.prompts is not None:
                raise ValueError(f"{self.model} takes classes: leave out --prompts")
            return class_requests(model, self.classes)
        if self.prompts is None:
            raise ValueError(f"{self.model} takes prompts: name a file of them, one a line (--prompts FILE)")
        return prompt_requests(self.prompts, base, truncate=self.truncate)

    def _alone(self, way: Way) -> str:
        """What measures one row against real pictures again."""
        return replace(self, only=(way.row.name,)).command()

    def _compared(
        self,
        base: "Pipeline",
        rows: "list[Row]",
        requests: Requests,
        sample: "Sample",
        processes: "Processes",
    ) -> "FolderReport | None":
        """Against real pictures, in an extractor's features; the first of several processes compares."""
        from swiftmask.data.images.decode import said
        from swiftmask.evaluate.extractors import load_extractor
        from swiftmask.evaluate.report.folder_study import Asked, run_folder_study

        assert self.extractor is not None and self.reference is not None
        extractor = load_extractor(self.extractor, base.model.device)
        identity = extractor.identity
        folder = self.out / "features" / f"{identity.name}-{identity.sha256[:DIGITS]}"
        source = self.reference.expanduser()
        reference = describe_reference(
            source,
            self.crop,
            self._decoding(),
            extractor,
            folder,
            check=lambda real: check_real(real, self.pictures, rows[0], requests, extractor, source),
            batch_size=self.batch,
            processes=processes,
        )
        processes.wait()
        if processes.rank == 0:
            for line in said(reference.changes(), reference.real.count or 0, self._decoding()):
                note(f"{self.reference}: {line}")
        gflop = {row.name: row.flops / 1e9 for row in rows}
        total = sum(gflop.values()) * sample.num_pictures * sample.num_seeds
        own = total / processes.count
        with counting("generating and describing", own, unit="GFLOP", shown=processes.rank == 0) as advance:
            return run_folder_study(
                rows,
                sample,
                reference,
                folder,
                requests=Asked(requests.entries, requests.first_seeds),
                origin=measure.origin(base.name, self.command()),
                on_progress=lambda row, count: advance(gflop[row] * count, row),
                processes=processes,
            )

    def _timelines(
        self,
        base: "Pipeline",
        ways: list[Way],
        report: "QualityReport | FolderReport",
        requests: Requests,
    ) -> "list[Timeline]":
        """Of the full model and of one row of each method, at the same budget if it was measured there."""
        from swiftmask.evaluate.report import comparison_of

        comparison = comparison_of(report)
        full, picked = comparison.full, comparison.picked()
        wanted = {} if full is None else {full.series: full.name}
        for row in (way.row for way in ways):
            same = picked is not None and (row.steps, row.full_steps) == (picked.steps, picked.full_steps)
            if row.series not in wanted or (same and row.series != "vanilla"):
                wanted[row.series] = row.name
        return [
            draw_timeline(way.evaluate.pipeline(base), way.row, requests)
            for way in ways
            if way.row.name in wanted.values()
        ]

    def _publish(
        self, report: "QualityReport | FolderReport", gallery: "Gallery", timelines: "Sequence[Timeline]"
    ) -> None:
        from swiftmask.core.writing import write_text
        from swiftmask.evaluate.report import comparison_of, findings, html_report, model_card

        comparison = comparison_of(report)
        found = findings(comparison)
        title = f"{report.model}: what acceleration costs"
        page = html_report(title, found, report, gallery=gallery, timelines=timelines)
        write_text(self.out / "report.json", json_module.dumps(asdict(report), indent=2) + "\n")
        write_text(self.out / "report.md", model_card(comparison))
        write_text(self.out / "report.html", page)
        if self.json:
            measure.print_json(asdict(report))
        else:
            print(f"{found}\nreport: {self.out / 'report.html'}")


def _require_scenes(base: "Pipeline") -> None:
    try:
        measure.require_scenes(base)
    except ValueError as error:
        raise ValueError(
            f"{error}: compare with real images instead (--reference FOLDER --extractor FILE)"
        ) from error


def _file_name(base: "Pipeline") -> str:
    return base.name.replace("/", "--")
