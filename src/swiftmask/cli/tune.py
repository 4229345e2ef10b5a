"""`swiftmask tune`: the best settings under a bound on cost or quality, as a preset."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from swiftmask.cli import measure
from swiftmask.cli.loading import say_where, shares_of

if TYPE_CHECKING:
    from swiftmask.cli.candidates import Workshop
    from swiftmask.cli.search import Finals, Search, Space
    from swiftmask.evaluate.presets import Preset, Settings
    from swiftmask.evaluate.tuning.halving import Bounds, Standing
    from swiftmask.evaluate.tuning.report import TuningReport
    from swiftmask.pipeline import Pipeline

CHEAPER = 0.98
"""What a bound on the loss alone asks of the cost: at least this share less than the reference."""


_STEPS = (1 / 2, 3 / 4, 1, 3 / 2)
"""What is tried unless something else is asked for, as shares of a model's own steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tune:
    """Search for the best way to draw under a bound, and write it as a preset for `generate --preset`.

    Bounds: `--speedup 2` or `--gflop 8` on the cost, `--max-loss 0.01` on the quality, or both. Exit code 1,
    and no preset, if nothing that was tried meets them. A killed search continues where it was.

    Attributes:
        model: bundled name, model folder or Hugging Face repo id.
        speedup: at most the reference's operations over this.
        gflop: at most so many GFLOP a picture, token decode only.
        max_loss: the cheapest that loses at most this share against the best full model.
        objective: of what: the judge's score, or fd_scenes (which also tells variety).
        reference_steps: decode steps of the full model that is the reference (default: the model's own).
        steps: step counts to try (default: from half of the model's own to one and a half times as many).
        shortcut: the shortcut to try ("auto" is the model's own, if it has one; "none" leaves it out).
        rivals: training-free accelerators to try (default: reuse and extrapolation-1 for models of codes).
        marval: the MARVAL student to try ("auto" and "none" as above).
        speed_rl: the Speed-RL weights to try ("auto" and "none" as above).
        denoising_steps: of a diffusion head, to try.
        guidance: values to try on the best of what the rest gives (default: half, as much and twice as
            strong).
        temperature: the same (default: 0.9 times and as much).
        choice_temperature: the same (default: half and as much).
        schedule_power: the same (default: 1 and 2; 1 is the model's own schedule).
        search_pictures: pictures that every candidate draws at first.
        pictures: pictures for each of --seeds evaluation seeds that the finalists are measured on.
        seeds: evaluation seeds of the finalists.
        drift_pictures: pictures that drift is measured on, for the optimised placements.
        batch: pictures at a time.
        device: where to run: cpu, cuda, mps, or auto (cuda where there is a GPU, else cpu).
        dtype: of the weights.
        out: folder for the preset, the report, and finished parts, which are used again.
        json: print JSON instead of tables.
    """

    model: Annotated[str, tyro.conf.Positional]
    speedup: float | None = None
    gflop: float | None = None
    max_loss: float | None = None
    objective: Literal["score", "fd_scenes"] = "score"
    reference_steps: int | None = None
    steps: tuple[int, ...] = ()
    shortcut: str = "auto"
    rivals: tuple[measure.Caching, ...] | None = None
    marval: str = "auto"
    speed_rl: str = "auto"
    denoising_steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] | None = None
    temperature: tuple[float, ...] | None = None
    choice_temperature: tuple[float, ...] | None = None
    schedule_power: tuple[float, ...] = (1.0, 2.0)
    search_pictures: int = 48
    pictures: int = 192
    seeds: int = 3
    drift_pictures: int = 48
    batch: int = 96
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    out: Path = Path("report")
    json: bool = False

    def run(self) -> int:
        """Search, print, write `OUT/MODEL-BOUND-tuning.json` and, if the bound can be met, the preset."""
        from swiftmask.api import load

        self._check()
        base = load(self.model, dtype=self.dtype, device=self.device)
        measure.require_scenes(base)
        return self.fitted_to(base)._tune(base)

    def fitted_to(self, base: "Pipeline") -> "Tune":
        """With what step counts that were left out mean for this model."""
        reference = base.steps if self.reference_steps is None else self.reference_steps
        return replace(self, reference_steps=reference, steps=self.steps or shares_of(base.steps, *_STEPS))

    def _tune(self, base: "Pipeline") -> int:
        """Search, write, print, with every step count chosen."""
        from swiftmask.cli.search import require_affordable
        from swiftmask.evaluate.presets import write_preset
        from swiftmask.evaluate.tuning.report import write_tuning_report

        with _bar() as show:
            search = self._search(base, show)
            require_affordable(search.shop, search.space, search.bounds)
            say_where(base)
            finals = search.run()
        name = f"{base.name.replace('/', '--')}-{self._slug()}"
        winner = winner_of(finals, search.bounds)
        path = self.out / f"{name}-preset.json"
        if winner is not None:
            write_preset(self._preset(search, finals, winner), path)
        report = self._report(search, finals, winner, path)
        write_tuning_report(report, self.out / f"{name}-tuning.json")
        if self.json:
            measure.print_json(asdict(report))
        else:
            _print(report)
        return 1 if winner is None else 0

    def command(self) -> str:
        """What searches the same again."""
        words: list[object] = ["tune", self.model]
        for flag in ("speedup", "gflop", "max_loss"):
            value = getattr(self, flag)
            words += [] if value is None else [_flag(flag), value]
        words += ["--objective", self.objective]
        words += [] if self.reference_steps is None else ["--reference-steps", self.reference_steps]
        words += ["--steps", *self.steps] if self.steps else []
        for flag in ("shortcut", "marval", "speed_rl"):
            words += [_flag(flag), getattr(self, flag)]
        sampling = ("guidance", "temperature", "choice_temperature", "schedule_power")
        for flag in ("rivals", "denoising_steps", *sampling):
            words += [_flag(flag), *given] if (given := getattr(self, flag)) else []
        for flag in ("search_pictures", "pictures", "seeds", "drift_pictures", "batch", "dtype", "device"):
            words += [_flag(flag), getattr(self, flag)]
        return measure.command_line(*words)

    def _check(self) -> None:
        """Mistakes are told before anything is loaded."""
        if self.speedup is None and self.gflop is None and self.max_loss is None:
            raise ValueError("nothing to tune for: give --speedup 2, --gflop 8 or --max-loss 0.01")
        if self.speedup is not None and self.gflop is not None:
            raise ValueError("--speedup and --gflop both bound the cost: give one")
        if self.speedup is not None and self.speedup <= 0:
            raise ValueError(f"--speedup must be more than 0, got {self.speedup:g}")
        if self.gflop is not None and self.gflop <= 0:
            raise ValueError(f"--gflop must be more than 0, got {self.gflop:g}")
        if self.max_loss is not None and not 0 <= self.max_loss < 1:
            raise ValueError(f"--max-loss is a share between 0 and 1 (0.01 is 1 %), got {self.max_loss:g}")
        counts = (*self.steps, *(() if self.reference_steps is None else (self.reference_steps,)))
        if any(count < 1 for count in counts):
            raise ValueError("--steps and --reference-steps take step counts of at least 1")
        if self.drift_pictures < 1:
            raise ValueError(f"--drift-pictures must be at least 1, got {self.drift_pictures}")

    def _search(self, base: "Pipeline", show: Callable[[float, float, str], None]) -> "Search":
        from swiftmask.cli.candidates import Workshop
        from swiftmask.cli.search import Meter, Search, Undiversified
        from swiftmask.evaluate.presets import Settings
        from swiftmask.evaluate.quality import RealPictures, Sample
        from swiftmask.evaluate.subjects import Classes
        from swiftmask.rewards.scenes import load_judge

        assert self.reference_steps is not None
        reference = Settings(steps=self.reference_steps)
        store = measure.store_of(base, self.out / f"{base.name.replace('/', '--')}-tune.partial")
        store.read()  # another model's results are told of before anything is measured
        of_class = base.model.spec.draws == "class"
        subjects = Undiversified(Classes() if of_class else measure.captions_of(base))
        shop = Workshop(
            base=base,
            subjects=subjects,
            folder=store.folder,
            drift_pictures=self.drift_pictures,
            command=self.command(),
        )
        return Search(
            shop=shop,
            space=self._space(base),
            bounds=self._bounds(shop, reference),
            store=store,
            real=RealPictures(load_judge(base.model.device), subjects),
            sample=Sample(num_pictures=self.search_pictures, num_seeds=1, batch_size=self.batch),
            confirming=Sample(num_pictures=self.pictures, num_seeds=self.seeds, batch_size=self.batch),
            meter=Meter(show),
        )

    def _bounds(self, shop: "Workshop", reference: "Settings") -> "Bounds":
        from swiftmask.evaluate.tuning.halving import Bounds

        if self.gflop is not None:
            flops = self.gflop * 1e9
        else:
            share = CHEAPER if self.speedup is None else 1 / self.speedup
            flops = shop.flops(reference) * share
        return Bounds(flops=flops, max_loss=self.max_loss, objective=self.objective)

    def _space(self, base: "Pipeline") -> "Space":
        """What to search, with what "auto" and options that were left out mean for this model."""
        from swiftmask.cli.candidates import own_sampling
        from swiftmask.cli.search import Space

        diffusion, own = measure.has_diffusion_head(base), own_sampling(base)
        strength = 0.0 if own.guidance is None else own.guidance - 1
        guidance = tuple(1 + strength * share for share in (0.5, 1.0, 2.0)) if strength else ()
        temperature = _scaled(own.temperature or 1.0, 0.9, 1.0)
        choice = () if own.choice_temperature is None else _scaled(own.choice_temperature, 0.5, 1.0)
        return Space(
            steps=self.steps,
            reference_steps=self.reference_steps or base.steps,
            shortcut=self._own("shortcut"),
            marval=self._own("marval") if diffusion else None,
            speed_rl=self._own("speed-rl"),
            rivals=(() if diffusion else ("reuse", "extrapolation-1"))
            if self.rivals is None
            else self.rivals,
            denoising_steps=self.denoising_steps,
            guidance=guidance if self.guidance is None else self.guidance,
            temperature=temperature if self.temperature is None else self.temperature,
            choice_temperature=choice if self.choice_temperature is None else self.choice_temperature,
            schedule_power=self.schedule_power,
        )

    def _own(self, method: str) -> str | None:
        """Where an accelerator's weights are, in a form that a preset can keep; None if there are none."""
        chosen = getattr(self, method.replace("-", "_"))
        if chosen == "none" or (chosen == "auto" and not measure.has_own(self.model, method)):
            return None
        where = {
            "shortcut": measure.shortcut_of,
            "marval": measure.marval_of,
            "speed-rl": measure.speed_rl_of,
        }
        source = Path(where[method](self.model, chosen))
        return str(source.resolve()) if source.exists() else source.name

    def _slug(self) -> str:
        given = [(flag, getattr(self, flag)) for flag in ("speedup", "gflop", "max_loss")]
        parts = [f"{flag.replace('_', '-')}-{value:g}" for flag, value in given if value is not None]
        return "-".join([*parts, *(["fd"] if self.objective == "fd_scenes" else [])])

    def _preset(self, search: "Search", finals: "Finals", winner: "Standing") -> "Preset":
        from swiftmask.evaluate.fingerprints import weights_fingerprint
        from swiftmask.evaluate.presets import Measured, Preset
        from swiftmask.evaluate.tuning.report import numbers

        base, origin = search.shop.base, measure.origin(self.model, self.command())
        found = search.shop.pipeline(winner.candidate.settings)
        measured = Measured(
            found=numbers(winner),
            reference=numbers(finals.reference),
            best_full=numbers(finals.best_full),
            speedup=finals.reference.candidate.row.flops / winner.candidate.row.flops,
            objective=self.objective,
            loss=winner.loss,
            pictures=self.pictures,
            seeds=self.seeds,
            dtype=self.dtype,
            commit=origin.commit,
            date=origin.date,
            machine=origin.machine,
            command=origin.command,
        )
        return Preset(
            model=base.name,
            fingerprint=weights_fingerprint(base.model),
            accelerated_fingerprint=weights_fingerprint(found.model, found.features_fn),
            settings=winner.candidate.settings,
            measured=measured,
        )

    def _report(
        self, search: "Search", finals: "Finals", winner: "Standing | None", path: Path
    ) -> "TuningReport":
        from swiftmask.evaluate.tuning.report import TuningReport, numbers, tried

        origin = measure.origin(search.shop.base.name, self.command())
        return TuningReport(
            **asdict(origin),
            asked=self._asked(search.bounds),
            answer=answer_of(finals, winner, path),
            objective=self.objective,
            reference=numbers(finals.reference),
            best_full=numbers(finals.best_full),
            found=None if winner is None else winner.candidate.row.name,
            preset=None if winner is None else str(path),
            confirmed=tried(finals.finalists),
            searched=tried(search.ranked()),
        )

    def _asked(self, bounds: "Bounds") -> str:
        cost = f"at most {bounds.flops / 1e9:.4g} GFLOP a picture"
        if self.speedup is not None:
            cost += f" ({self.speedup:g} times less than {self.reference_steps} full steps)"
        if self.max_loss is None:
            return f"the best {self.objective} for {cost}"
        return f"the cheapest that loses at most {100 * self.max_loss:g} % of {self.objective}, for {cost}"


def winner_of(finals: "Finals", bounds: "Bounds") -> "Standing | None":
    """The best finalist that meets the bounds on fresh pictures."""
    return next((standing for standing in finals.finalists if standing.meets(bounds)), None)


def answer_of(finals: "Finals", winner: "Standing | None", path: Path) -> str:
    """What came of the search, in a sentence."""
    from swiftmask.evaluate.tuning.report import percent

    best = winner or finals.finalists[0]
    reference, best_full = (one.candidate.row for one in (finals.reference, finals.best_full))
    what = (
        f"{best.candidate.row.name}: {reference.flops / best.candidate.row.flops:.2f} times less than "
        f"{reference.name}, loses {percent(best.loss)} against {best_full.name}"
    )
    return f"nothing meets the bound; nearest is {what}" if winner is None else f"{what}; preset in {path}"


def _scaled(value: float, *factors: float) -> tuple[float, ...]:
    return tuple(value * factor for factor in factors)


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


@contextmanager
def _bar() -> Iterator[Callable[[float, float, str], None]]:
    """A bar with the time left, in GFLOP; yields `show(done, total, what)` in operations."""
    from swiftmask.cli.progress import progress_bar

    with progress_bar() as progress:
        task = progress.add_task("tuning", total=None, unit="GFLOP")
        yield lambda done, total, what: progress.update(
            task, completed=done / 1e9, total=total / 1e9, description=what
        )


def _print(report: "TuningReport") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from swiftmask.evaluate.tuning.report import percent

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    for title, rows in (
        ("finalists, on fresh pictures", report.confirmed),
        ("searched", report.searched[:20]),
    ):
        table = Table(title=f"{report.model}: {title}", title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("candidate", "GFLOP", "pictures", "judge score ↑", "fd_scenes ↓", "loss (± s.e.)"):
            table.add_column(heading, justify="left" if heading == "candidate" else "right")
        for row in rows:
            table.add_row(
                row.name,
                f"{row.gflop_per_picture:.2f}",
                str(row.pictures),
                row.score.text(3),
                row.fd_scenes.text(1),
                percent(row.loss),
            )
        console.print(table)
    console.print(f"asked: {report.asked}", highlight=False)
    console.print(report.answer, highlight=False)
