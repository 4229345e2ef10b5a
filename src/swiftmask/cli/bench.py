"""`swiftmask bench MODEL`: quality against cost, as a page, a model card and JSON."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from swiftmask.cli import measure
from swiftmask.cli.asked import Asked
from swiftmask.cli.loading import budgets_of, own_device, shares_of

if TYPE_CHECKING:
    from swiftmask.cli.rows import Rows
    from swiftmask.evaluate.presets import Settings
    from swiftmask.evaluate.processes import Processes
    from swiftmask.evaluate.study import Row, Sample, Study
    from swiftmask.pipeline import Pipeline

_STEPS = (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
_BUDGETS = ((1, 1 / 4), (1, 3 / 8))
"""What is measured unless something else is asked for, as shares of a model's own steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Quality against cost: OUT/report.html, report.md (for a model card), report.json and frontier.png.

    Compares the full model, the same with fewer steps, its accelerators, training-free baselines, and the
    model without guidance; same seeds in every row. Any number of scorers measure the images. A killed run
    continues where it was; processes that torchrun started share the work.

    Attributes:
        model: bundled name, model folder or Hugging Face repo id.
        steps: step counts of the full model (default: from a quarter of the model's own up to those).
        budgets: accelerated rows, as STEPS:FULL pairs; the full model is measured at their STEPS, too
            (default: a quarter and three eighths of the model's own steps full).
        shortcut: a shortcut's name or folder; auto is the model's own, if it has one; none leaves it out.
        baselines: training-free accelerators of the backbone, at the same budgets (default: all there are).
        marval: MARVAL students of a diffusion head, by name or folder; auto is the model's own, if it has
            one.
        marval_steps: their decode steps (default: --steps).
        speed_rl: weights tuned for few steps, by name or folder; auto is the model's own, if it has them.
        speed_rl_steps: their decode steps (default: --steps).
        unguided: rows without guidance, which halves the cost, of a model that has it: STEPS of the full
            model, or STEPS:FULL with the shortcut (default: the model's own steps).
        temperatures: other temperatures of the tokens, which cost nothing: the full model at --steps, and
            tuned weights at theirs, are measured at these, too.
        schedule_powers: other schedules, which cost nothing either (above 1, more tokens are decided early
            and fewer late): the same rows again, at every temperature.
        denoising_steps: of a diffusion head, ancestral, at each of --steps; 8x10 is 10 of them in each of 8
            decode steps.
        ddim_steps: the same, deterministic.
        disa: the same, annealed over the decode, as FIRST:LAST pairs.
        only: names of rows to measure alone (default: all).
        images: images per row for each evaluation seed.
        seeds: evaluation seeds.
        batch_size: images at a time.
        shown: images side by side.
        device: where to run: cpu, cuda, mps, or auto (cuda where there is a GPU, else cpu).
        dtype: of the weights.
        out: folder of the report; finished parts are kept there and used again.
        overwrite: replace the report of another model or of other settings, or a demo.
        engine: ray spreads the rows and seeds over --workers processes, on this machine or on the Ray cluster
            that it belongs to (extra ray, docs/cluster.md).
        workers: processes of --engine ray.
        gpus_per_worker: GPUs of each of them (default: 1 where the cluster has GPUs).
        json: print JSON instead of what was found.
    """

    model: Annotated[str, tyro.conf.Positional]
    asked: Annotated[Asked, tyro.conf.OmitArgPrefixes] = Asked()
    steps: tuple[int, ...] | None = None
    budgets: tuple[str, ...] | None = None
    shortcut: str = "auto"
    baselines: tuple[measure.Caching, ...] | None = None
    marval: tuple[str, ...] = ("auto",)
    marval_steps: tuple[int, ...] = ()
    speed_rl: tuple[str, ...] = ("auto",)
    speed_rl_steps: tuple[int, ...] = ()
    unguided: tuple[str, ...] | None = None
    temperatures: tuple[float, ...] = ()
    schedule_powers: tuple[float, ...] = ()
    denoising_steps: tuple[str, ...] = ()
    ddim_steps: tuple[str, ...] = ()
    disa: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    images: int = 700
    seeds: int = 3
    batch_size: int = 100
    shown: int = 6
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    out: Path = Path("report")
    overwrite: bool = False
    engine: Literal["ray"] | None = None
    workers: int = 1
    gpus_per_worker: float | None = None
    json: bool = False

    def run(self) -> int:
        """Measure what is missing, generate what is shown, write, print."""
        from swiftmask.api import load
        from swiftmask.cli.rows import Rows
        from swiftmask.cli.shown import measure_and_publish
        from swiftmask.evaluate.processes import Processes

        self._check_options()
        sample = self.sample()
        processes = Processes.here()
        base = load(self.model, dtype=self.dtype, device=own_device(processes, self.device))
        command = measure.command_of("bench", self)
        if not self.overwrite:
            measure.refuse_another_report(self.out / "report.json", base.name, command)
        rows_of = Rows(base)
        if self.engine == "ray":
            from swiftmask.cli.bench_ray import generate_on_ray

            generate_on_ray(self)  # what is left here is to read and to publish
        study, rows = self.prepared(base, rows_of, sample, processes)
        measure_and_publish(self, command, rows_of, rows, study, sample)
        return 0

    def sample(self) -> "Sample":
        """How much is generated."""
        from swiftmask.evaluate.study import Sample

        return Sample(num_images=self.images, num_seeds=self.seeds, batch_size=self.batch_size)

    def prepared(
        self, base: "Pipeline", rows_of: "Rows", sample: "Sample", processes: "Processes"
    ) -> "tuple[Study, list[Row]]":
        """What is measured. Mistakes in settings are told before operations are counted, which takes long."""
        from swiftmask.cli.scoring import study_of

        fitted = self._fitted_to(base)
        wanted = fitted._settings(base)
        for settings, _ in wanted:
            rows_of.check(settings)
        if not wanted:
            raise ValueError("nothing to measure: give --steps or --budgets")
        compared = any(reference for _, reference in wanted) and not self.only
        folder = self.out / f"{measure.file_name(base)}.partial"
        study = study_of(base, self.asked, sample, folder, compared=compared, processes=processes)
        once: dict[str, Row] = {}
        for settings, reference in wanted:
            row = rows_of.row(settings, reference=reference)
            once.setdefault(row.fingerprint, row)
        return study, self._chosen(list(once.values()))

    def _check_options(self) -> None:
        """Errors: ValueError or FileNotFoundError for what is wrong before anything is loaded."""
        for text in self.budgets or ():
            parse_budget(text)
        check_unguided(self.unguided or ())
        check_denoising(self.denoising_steps, self.ddim_steps, self.disa)
        self.asked.check()
        if self.engine is None and (self.workers, self.gpus_per_worker) != (1, None):
            raise ValueError("--workers and --gpus-per-worker need --engine ray")

    def _fitted_to(self, base: "Pipeline") -> "Bench":
        """With what step counts that were left out and "auto" mean for this model."""
        budgets = budgets_of(base.steps, *_BUDGETS) if self.budgets is None else self.budgets
        steps = shares_of(base.steps, *_STEPS) if self.steps is None else self.steps
        unguided = (str(base.steps),) if measure.is_guided(base) else ()
        marval, speed_rl = (
            tuple(
                source
                for name in getattr(self, method)
                if (source := measure.own_or_none(self.model, name, method)) != "none"
            )
            for method in ("marval", "speed_rl")
        )
        return replace(
            self,
            steps=tuple(sorted({*steps, *(parse_budget(text)[0] for text in budgets)})),
            budgets=budgets,
            unguided=unguided if self.unguided is None else self.unguided,
            baselines=measure.baselines_of(base) if self.baselines is None else self.baselines,
            shortcut=measure.own_or_none(self.model, self.shortcut, "shortcut"),
            marval=marval if measure.has_diffusion_head(base) or self.marval != ("auto",) else (),
            speed_rl=speed_rl,
        )

    def _settings(self, base: "Pipeline") -> "list[tuple[Settings, str | None]]":
        """Every way to generate that was asked for, and the row that it is compared with."""
        from swiftmask.evaluate.presets import Settings

        plain = [Settings(steps=steps) for steps in self.steps or ()]
        asked: list[tuple[Settings, str | None]] = [(alone, None) for alone in plain]
        given = [] if self.shortcut == "none" else [Settings(shortcut=self.shortcut)]
        given += [Settings(caching=baseline) for baseline in self.baselines or ()]
        for accelerator in given:
            for steps, full_steps in map(parse_budget, self.budgets or ()):
                alone = replace(accelerator, steps=steps, full_steps=full_steps)
                asked.append((alone, f"vanilla-{steps}" if steps in (self.steps or ()) else None))
        others = (*self._unguided(base), *self._resampled(plain), *self._heads(), *self._students())
        return [*asked, *((alone, None) for alone in others)]

    def _unguided(self, base: "Pipeline") -> "Iterator[Settings]":
        """Errors: ValueError for a model without guidance, or a budget without a shortcut."""
        from swiftmask.core.protocol import SamplingOptions
        from swiftmask.evaluate.presets import Settings

        if self.unguided and not measure.is_guided(base):
            raise ValueError(f"{base.name} generates without guidance: leave out --unguided")
        off = Settings(sampling=SamplingOptions(guidance=1.0))
        for text in self.unguided or ():
            if ":" not in text:
                yield replace(off, steps=int(text))
            elif self.shortcut == "none":
                raise ValueError(f"--unguided {text} needs a shortcut: give --shortcut, or STEPS alone")
            else:
                steps, full_steps = parse_budget(text)
                yield replace(off, steps=steps, shortcut=self.shortcut, full_steps=full_steps)

    def _resampled(self, some: "Iterable[Settings]") -> "Iterator[Settings]":
        """Each of `some` at every other temperature, with every other schedule, and with both."""
        for one, temperature, power in product(
            some, (None, *self.temperatures), (None, *self.schedule_powers)
        ):
            sampling = replace(one.sampling, temperature=temperature, schedule_power=power)
            if sampling != one.sampling:
                yield replace(one, sampling=sampling)

    def _heads(self) -> "Iterator[Settings]":
        """The full model with fewer denoising steps."""
        from swiftmask.core.protocol import SamplingOptions
        from swiftmask.evaluate.presets import Settings

        asked = [("ancestral", *parse_denoising(text)) for text in self.denoising_steps]
        asked += [("ancestral", None, parse_annealing(text)) for text in self.disa]
        asked += [("ddim", *parse_denoising(text)) for text in self.ddim_steps]
        for sampler, own_steps, count in asked:
            for steps in self.steps or () if own_steps is None else (own_steps,):
                sampling = SamplingOptions(denoising_steps=count, sampler=sampler)  # type: ignore[arg-type]
                yield Settings(steps=steps, sampling=sampling)

    def _students(self) -> "Iterator[Settings]":
        """Other weights."""
        from swiftmask.evaluate.presets import Settings

        for student in self.marval:
            yield from (Settings(steps=n, marval=student) for n in self.marval_steps or self.steps or ())
        for policy in self.speed_rl:
            counts = self.speed_rl_steps or self.steps or ()
            tuned = [Settings(steps=steps, speed_rl=policy) for steps in counts]
            yield from tuned
            yield from self._resampled(tuned)

    def _chosen(self, rows: "list[Row]") -> "list[Row]":
        known = [row.name for row in rows]
        if unknown := [name for name in self.only if name not in known]:
            raise ValueError(f"--only {unknown[0]}: no row is called that, there are {', '.join(known)}")
        if not self.only:
            return rows
        return [replace(row, reference=None) for row in rows if row.name in self.only]


def parse_budget(text: str) -> tuple[int, int]:
    """ "16:4" is 16 steps, 4 of them full. Errors: ValueError for anything else."""
    steps, full_steps = _parse_pair(text, "a budget is STEPS:FULL, such as 16:4")
    measure.check_budget(steps, full_steps)
    return steps, full_steps


def check_unguided(rows: Sequence[str]) -> None:
    """Errors: ValueError for what is neither STEPS nor STEPS:FULL."""
    for text in rows:
        if ":" in text:
            parse_budget(text)
        elif not text.isdecimal() or int(text) < 1:
            raise ValueError(f"--unguided takes STEPS or STEPS:FULL, such as 16 or 16:4, got {text!r}")


def check_denoising(ancestral: Sequence[str], ddim: Sequence[str], annealed: Sequence[str]) -> None:
    """Errors: ValueError for what is no number of denoising steps, or too few of them."""
    for text in annealed:
        if min(parse_annealing(text)) < 2:
            raise ValueError(
                f"--disa {text}: ancestral sampling needs at least 2 denoising steps, first and last"
            )
    for text in (*ancestral, *ddim):
        parse_denoising(text)
    if few := [text for text in ancestral if parse_denoising(text)[1] == 1]:
        raise ValueError(
            f"--denoising-steps {few[0]}: ancestral sampling needs at least 2, take --ddim-steps {few[0]}"
        )


def parse_denoising(text: str) -> tuple[int | None, int]:
    """ "10" is 10 denoising steps at any number of decode steps (None), "8x10" at 8 of them.

    Errors: ValueError for anything else.
    """
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", text)
    if found is None:
        raise ValueError(f"denoising steps are a number, or DECODExDENOISING such as 8x10, got {text!r}")
    decode, count = found.groups()
    return int(decode) if decode else None, int(count)


def parse_annealing(text: str) -> tuple[int, int]:
    """ "50:5" is 50 denoising steps at first and 5 at last. Errors: ValueError for anything else."""
    return _parse_pair(text, "annealed denoising steps are FIRST:LAST, such as 50:5")


def _parse_pair(text: str, expected: str) -> tuple[int, int]:
    first, _, second = text.partition(":")
    if not (first.isdecimal() and second.isdecimal()):
        raise ValueError(f"{expected}, got {text!r}")
    return int(first), int(second)
