"""`swiftmask bench quality`: the tables of the README. `bench report` (bench_report.py) measures the same
rows.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from swiftmask.cli import measure
from swiftmask.cli.evaluate import Evaluate
from swiftmask.cli.loading import budgets_of, own_device, say_where, shares_of

if TYPE_CHECKING:
    from swiftmask.evaluate.quality import Row
    from swiftmask.evaluate.summary import QualityReport
    from swiftmask.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Way:
    """One way to generate with a model: its options, and the row they make."""

    evaluate: Evaluate
    row: "Row"


_Asked = tuple[Evaluate, str | None]
"""Options, and the row that the tokens are compared with."""

_STEPS = (1 / 4, 3 / 8, 1 / 2, 3 / 4, 1, 3 / 2, 2)
_BUDGETS = ((3 / 4, 1 / 4), (1, 1 / 4), (1, 3 / 8), (2, 1 / 2))
"""What is measured unless something else is asked for, as shares of a model's own steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchQuality:
    """Quality against cost: the full model at several step counts, accelerators, and training-free baselines.

    Same image seeds and labels in every row. A killed run continues where it was.

    Attributes:
        model: bundled name, model folder or Hugging Face repo id.
        shortcut: the shortcut to measure ("auto" is the model's own, "none" leaves it out; a model with a
            diffusion head may have none).
        steps: step counts of the full model (default: from a quarter of the model's own to twice as many).
        shortcut_budgets: accelerated rows, as STEPS:FULL pairs (default: shares of the model's own steps).
        rivals: training-free accelerators of the backbone, measured at the same pairs (default: all there
            are for models of codes, none for a diffusion head).
        unguided: rows without guidance, which halves the cost: STEPS of the full model, or STEPS:FULL with
            the shortcut.
        temperatures: other temperatures of the tokens, which cost nothing: the full model at --steps, and
            tuned weights at theirs, are generated at these, too.
        schedule_powers: other schedules, which cost nothing either (above 1, more tokens are decided early
            and fewer late): the same rows again, at every temperature.
        denoising_steps: of a diffusion head, ancestral, at each of --steps; 8x10 is 10 of them in each of 8
            decode steps.
        ddim_steps: the same, deterministic.
        disa: the same, annealed over the decode, as FIRST:LAST pairs.
        marval: MARVAL students to measure, by name or folder ("auto" is the model's own).
        marval_steps: their decode steps (default: --steps).
        speed_rl: weights tuned by Speed-RL to measure, by name or folder ("auto" is the model's own).
        speed_rl_steps: their decode steps (default: --steps).
        pictures: images per row for each evaluation seed.
        seeds: evaluation seeds.
        batch: images at a time.
        device: where to run: cpu, cuda, mps, or auto (cuda where there is a GPU, else cpu).
        dtype: of the weights.
        out: folder for MODEL-quality.json, .md and -frontier.png.
        json: print JSON instead of a table.
    """

    model: Annotated[str, tyro.conf.Positional]
    shortcut: str = "auto"
    steps: tuple[int, ...] | None = None
    shortcut_budgets: tuple[str, ...] | None = None
    rivals: tuple[measure.Caching, ...] | None = None
    unguided: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = ()
    schedule_powers: tuple[float, ...] = ()
    denoising_steps: tuple[str, ...] = ()
    ddim_steps: tuple[str, ...] = ()
    disa: tuple[str, ...] = ()
    marval: tuple[str, ...] = ()
    marval_steps: tuple[int, ...] = ()
    speed_rl: tuple[str, ...] = ()
    speed_rl_steps: tuple[int, ...] = ()
    pictures: int = 700
    seeds: int = 3
    batch: int = 100
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    out: Path = Path("benchmarks/results")
    json: bool = False

    def run(self) -> int:
        """Measure every row, write the three files, print the table."""
        from swiftmask.api import load
        from swiftmask.evaluate.processes import Processes
        from swiftmask.evaluate.quality import Sample

        for text in self.shortcut_budgets or ():  # a mistake is told before anything is loaded
            parse_budget(text)
        check_unguided(self.unguided)
        check_denoising(self.denoising_steps, self.ddim_steps, self.disa)
        sample = Sample(num_pictures=self.pictures, num_seeds=self.seeds, batch_size=self.batch)
        processes = Processes.here()
        base = load(self.model, dtype=self.dtype, device=own_device(processes, self.device))
        measure.require_scenes(base)
        chosen = self.fitted_to(base)
        rows = [way.row for way in chosen.ways(base)]
        if not rows:
            raise ValueError("nothing to measure: give --steps or --shortcut-budgets")
        name = base.name.replace("/", "--")
        store = measure.store_of(base, self.out / f"{name}-quality.partial")
        if processes.rank == 0:
            say_where(base)
        report = measure.study(
            rows, sample, store, model=base.name, command=chosen.command(), processes=processes
        )
        if processes.rank == 0:
            self._publish(report, name)
        return 0

    def command(self) -> str:
        """What measures all of it again."""
        words: list[object] = ["bench", "quality", self.model, "--shortcut", self.shortcut]
        words += [] if self.steps is None else ["--steps", *self.steps]
        if self.shortcut_budgets is not None and (self.shortcut != "none" or self.rivals):
            words += ["--shortcut-budgets", *self.shortcut_budgets]
        words += [] if self.rivals is None else ["--rivals", *self.rivals]
        others = ("unguided", "temperatures", "schedule_powers", "denoising_steps", "ddim_steps", "disa")
        for flag in (*others, "marval", "marval_steps", "speed_rl", "speed_rl_steps"):
            given = getattr(self, flag)
            words += [f"--{flag.replace('_', '-')}", *given] if given else []
        words += ["--pictures", self.pictures, "--seeds", self.seeds, "--batch", self.batch]
        return measure.command_line(*words, "--dtype", self.dtype, "--device", self.device, "--out", self.out)

    def fitted_to(self, base: "Pipeline") -> "BenchQuality":
        """With what "auto" and an option that was left out mean for this model."""
        return replace(
            self,
            steps=shares_of(base.steps, *_STEPS) if self.steps is None else self.steps,
            shortcut_budgets=budgets_of(base.steps, *_BUDGETS)
            if self.shortcut_budgets is None
            else self.shortcut_budgets,
        )._accelerators_of(base)

    def _accelerators_of(self, base: "Pipeline") -> "BenchQuality":
        if not measure.has_diffusion_head(base):
            return replace(self, rivals=measure.rivals_of(base) if self.rivals is None else self.rivals)
        no_own = self.shortcut == "auto" and not measure.has_own(self.model, "shortcut")
        return replace(self, shortcut="none" if no_own else self.shortcut)

    def _evaluate(self, steps: int) -> Evaluate:
        return Evaluate(
            model=self.model,
            steps=steps,
            pictures=self.pictures,
            seeds=self.seeds,
            device=self.device,
            dtype=self.dtype,
        )

    def ways(self, base: "Pipeline") -> list[Way]:
        """Every way to draw that was asked for, once: the model's own sampling may be among the others."""
        plain = [self._evaluate(steps) for steps in self.steps or ()]
        asked: list[_Asked] = [(alone, None) for alone in plain]
        asked += self._accelerated(base)
        asked += ((alone, None) for alone in self._unguided(base))
        asked += ((alone, None) for alone in self._drawn_otherwise(plain))
        asked += ((alone, None) for alone in self._heads())
        asked += ((alone, None) for alone in self._students())
        for (
            alone,
            _,
        ) in asked:  # complains about what cannot be before operations are counted, which takes long
            alone.pipeline(base).schedule(alone.steps)
        ways = [Way(alone, alone.row(base, reference=reference)) for alone, reference in asked]
        once: dict[str, Way] = {}
        for way in ways:
            once.setdefault(way.row.fingerprint, way)
        return list(once.values())

    def _accelerated(self, base: "Pipeline") -> "Iterator[_Asked]":
        given = [] if self.shortcut == "none" else [{"shortcut": self.shortcut}]
        given += [{"caching": rival} for rival in self.rivals or ()]
        for accelerator in given:
            for steps, full_steps in map(parse_budget, self.shortcut_budgets or ()):
                alone = replace(self._evaluate(steps), full_steps=full_steps, **accelerator)
                compared = steps in (self.steps or ()) and not measure.has_diffusion_head(base)
                yield alone, f"vanilla-{steps}" if compared else None

    def _unguided(self, base: "Pipeline") -> Iterator[Evaluate]:
        """Errors: ValueError for a model without guidance, or a budget without a shortcut."""
        if self.unguided and not measure.is_guided(base):
            raise ValueError(f"{base.name} is generated without guidance: leave out --unguided")
        for text in self.unguided:
            if ":" not in text:
                alone = replace(self._evaluate(int(text)), unguided=True)
            elif self.shortcut == "none":
                raise ValueError(f"--unguided {text} needs a shortcut: give --shortcut, or STEPS alone")
            else:
                steps, full_steps = parse_budget(text)
                alone = replace(
                    self._evaluate(steps), unguided=True, shortcut=self.shortcut, full_steps=full_steps
                )
            yield alone

    def _drawn_otherwise(self, drawn: Iterable[Evaluate]) -> Iterator[Evaluate]:
        """Each of `drawn` at every other temperature, with every other schedule, and with both."""
        choices = product(drawn, (None, *self.temperatures), (None, *self.schedule_powers))
        for alone, temperature, power in choices:
            changed = replace(alone, temperature=temperature, schedule_power=power)
            if changed != alone:
                yield changed

    def _heads(self) -> Iterator[Evaluate]:
        """The full model with fewer denoising steps."""
        asked = [("ancestral", *parse_denoising(text)) for text in self.denoising_steps]
        asked += [("ancestral", None, parse_annealing(text)) for text in self.disa]
        asked += [("ddim", *parse_denoising(text)) for text in self.ddim_steps]
        for sampler, own_steps, counts in asked:
            for steps in self.steps or () if own_steps is None else (own_steps,):
                alone = replace(self._evaluate(steps), denoising_steps=counts, sampler=sampler)
                yield alone

    def _students(self) -> Iterator[Evaluate]:
        """Other weights."""
        for student in self.marval:
            for steps in self.marval_steps or self.steps or ():
                alone = replace(self._evaluate(steps), marval=student)
                yield alone
        for policy in self.speed_rl:
            counts = self.speed_rl_steps or self.steps or ()
            tuned = [replace(self._evaluate(steps), speed_rl=policy) for steps in counts]
            yield from tuned
            yield from self._drawn_otherwise(tuned)

    def _publish(self, report: "QualityReport", name: str) -> None:
        from swiftmask.core.writing import write_text
        from swiftmask.evaluate.frontier import save_frontier
        from swiftmask.evaluate.quality_table import markdown
        from swiftmask.evaluate.summary import write_report

        write_report(report, self.out / f"{name}-quality.json")
        write_text(self.out / f"{name}-quality.md", markdown(report))
        save_frontier(report, self.out / f"{name}-frontier.png")
        if self.json:
            measure.print_json(asdict(report))
        else:
            measure.print_table(report)


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
    if few := [text for text in ancestral if parse_denoising(text)[1] == (1,)]:
        raise ValueError(
            f"--denoising-steps {few[0]}: ancestral sampling needs at least 2, take --ddim-steps {few[0]}"
        )


def parse_denoising(text: str) -> tuple[int | None, tuple[int]]:
    """ "10" is 10 denoising steps at any number of decode steps (None), "8x10" at 8 of them.

    Errors: ValueError for anything else.
    """
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", text)
    if found is None:
        raise ValueError(f"denoising steps are a number, or DECODExDENOISING such as 8x10, got {text!r}")
    decode, count = found.groups()
    return int(decode) if decode else None, (int(count),)


def parse_annealing(text: str) -> tuple[int, int]:
    """ "50:5" is 50 denoising steps at first and 5 at last. Errors: ValueError for anything else."""
    return _parse_pair(text, "annealed denoising steps are FIRST:LAST, such as 50:5")


def _parse_pair(text: str, expected: str) -> tuple[int, int]:
    first, _, second = text.partition(":")
    if not (first.isdecimal() and second.isdecimal()):
        raise ValueError(f"{expected}, got {text!r}")
    return int(first), int(second)
