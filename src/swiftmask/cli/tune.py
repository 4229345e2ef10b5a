"""`swiftmask tune`: the best settings under a bound on cost or quality, as a preset."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from swiftmask.cli import measure
from swiftmask.cli.asked import Asked
from swiftmask.cli.loading import say_where, shares_of

if TYPE_CHECKING:
    from swiftmask.cli.search import Found, Search
    from swiftmask.core.protocol import SamplingOptions
    from swiftmask.evaluate.quantities import Quantity
    from swiftmask.evaluate.study import Study
    from swiftmask.evaluate.tuning.halving import Goal, Tried
    from swiftmask.pipeline import Pipeline

CHEAPER = 0.98
"""What a bound on the loss alone asks of the cost: at least this share less than the reference."""

_STEPS = (1 / 2, 3 / 4, 1, 3 / 2)
"""What is tried unless something else is asked for, as shares of a model's own steps."""

_FRESH_SEED = 1_000
"""First evaluation seed of the finalists; no search gets that far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What is searched.

    Attributes:
        reference_steps: decode steps of the full model that is the reference (default: the model's own).
        steps: step counts to try (default: from half of the model's own to one and a half times as many).
        shortcut: the shortcut to try ("auto" is the model's own, if it has one; "none" leaves it out).
        baselines: training-free accelerators to try (default: reuse and extrapolation-1 for models of codes).
        marval: the MARVAL student to try ("auto" and "none" as above).
        speed_rl: the Speed-RL weights to try ("auto" and "none" as above).
        denoising_steps: of a diffusion head, to try.
        guidance: values to try on the best of what the rest gives (default: half, as much and twice as
            strong).
        temperature: the same (default: 0.9 times and as much).
        choice_temperature: the same (default: half and as much).
        schedule_power: the same (default: 1 and 2; 1 is the model's own schedule).
    """

    reference_steps: int | None = None
    steps: tuple[int, ...] = ()
    shortcut: str = "auto"
    baselines: tuple[measure.Caching, ...] | None = None
    marval: str = "auto"
    speed_rl: str = "auto"
    denoising_steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] | None = None
    temperature: tuple[float, ...] | None = None
    choice_temperature: tuple[float, ...] | None = None
    schedule_power: tuple[float, ...] = (1.0, 2.0)

    def fitted_to(self, base: "Pipeline", model: str) -> "Space":
        """With what "auto" and options that were left out mean for a model and the name it was given."""
        from swiftmask.cli.rows import own_sampling

        diffusion, own = measure.has_diffusion_head(base), own_sampling(base)
        strength = 0.0 if own.guidance is None else own.guidance - 1
        choice = own.choice_temperature
        defaults: dict[str, tuple[Any, ...]] = {
            "baselines": () if diffusion else ("reuse", "extrapolation-1"),
            "guidance": tuple(1 + strength * share for share in (0.5, 1.0, 2.0)) if strength else (),
            "temperature": tuple((own.temperature or 1.0) * factor for factor in (0.9, 1.0)),
            "choice_temperature": () if choice is None else (0.5 * choice, choice),
        }
        return replace(
            self,
            reference_steps=self.reference_steps or base.steps,
            steps=self.steps or shares_of(base.steps, *_STEPS),
            shortcut=measure.own_or_none(model, self.shortcut, "shortcut"),
            marval=measure.own_or_none(model, self.marval, "marval") if diffusion else "none",
            speed_rl=measure.own_or_none(model, self.speed_rl, "speed_rl"),
            **{name: value for name, value in defaults.items() if getattr(self, name) is None},
        )

    def sampling(self, own: "SamplingOptions", *, guided: bool) -> "list[SamplingOptions]":
        """Every combination of the values but what the model does anyway, whose own values stay unsaid."""
        from swiftmask.core.protocol import SamplingOptions

        given = (
            (self.guidance if guided else (), own.guidance),
            (self.temperature, own.temperature),
            (self.choice_temperature, own.choice_temperature),
            (self.schedule_power, own.power),
        )
        values = [
            [None if value == ours else value for value in some or ()] or [None] for some, ours in given
        ]
        grid = [
            SamplingOptions(guidance=g, temperature=t, choice_temperature=c, schedule_power=p)
            for g, t, c, p in product(*values)
        ]
        return [options for options in dict.fromkeys(grid) if options != SamplingOptions()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tune:
    """Search for the best way to generate under a bound, and write it as a preset for `generate --preset`.

    Bounds: `--speedup 2` or `--gflop 8` on the cost, `--max-loss 0.01` on the quality, or both. Exit code 1,
    and no preset, if nothing that was tried meets them. A killed search continues where it was.

    Attributes:
        model: bundled name, model folder or Hugging Face repo id.
        speedup: at most the reference's operations over this.
        time: the speedup is of measured milliseconds instead of operations.
        gflop: at most so many GFLOP an image, token decode only.
        max_loss: the cheapest that loses at most this share against the best full model.
        objective: key of the quantity that is lost, such as score, fd_scenes or pickscore (default: the first
            of the first scorer).
        search_images: images that every candidate generates at first.
        images: images for each of --seeds evaluation seeds that the finalists are measured on.
        seeds: evaluation seeds of the finalists.
        drift_images: images that drift is measured on, for the optimised placements.
        batch_size: images at a time.
        device: where to run: cpu, cuda, mps, or auto (cuda where there is a GPU, else cpu).
        dtype: of the weights.
        out: folder for the preset, the report, and finished parts, which are used again.
        json: print JSON instead of tables.
    """

    model: Annotated[str, tyro.conf.Positional]
    asked: Annotated[Asked, tyro.conf.OmitArgPrefixes] = Asked()
    speedup: float | None = None
    time: bool = False
    gflop: float | None = None
    max_loss: float | None = None
    objective: str | None = None
    space: Annotated[Space, tyro.conf.OmitArgPrefixes] = Space()
    search_images: int = 48
    images: int = 192
    seeds: int = 3
    drift_images: int = 48
    batch_size: int = 96
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    out: Path = Path("report")
    json: bool = False

    def run(self) -> int:
        """Search, print, write `OUT/MODEL-BOUND-tuning.json` and, if the bound can be met, the preset."""
        from swiftmask.api import load
        from swiftmask.cli.rows import Rows
        from swiftmask.cli.scoring import resumable, study_of
        from swiftmask.cli.search import Search
        from swiftmask.evaluate.study import Sample

        self._check()
        base = load(self.model, dtype=self.dtype, device=self.device)
        rows_of = Rows(base)
        searched = Sample(num_images=self.search_images, num_seeds=1, batch_size=self.batch_size)
        folder = self.out / f"{measure.file_name(base)}-tune.partial"
        study = study_of(base, self.asked, searched, folder, diverse=False, brief=True)
        search = Search(
            rows_of=rows_of,
            study=study,
            space=self.space.fitted_to(base, self.model),
            searched=searched,
            confirming=Sample(
                num_images=self.images,
                num_seeds=self.seeds,
                batch_size=self.batch_size,
                first_seed=_FRESH_SEED,
            ),
            drift_images=self.drift_images,
        )
        objective = _objective(study, self.objective)
        with resumable():
            goal = self._goal(search, objective)
            search.require_affordable(goal)
            say_where(base)
            found = search.run(goal)
        return self._publish(base, search, goal, found)

    def _check(self) -> None:
        """Mistakes are told before anything is loaded."""
        if self.speedup is None and self.gflop is None and self.max_loss is None:
            raise ValueError("nothing to tune for: give --speedup 2, --gflop 8 or --max-loss 0.01")
        if self.speedup is not None and self.gflop is not None:
            raise ValueError("--speedup and --gflop both bound the cost: give one")
        if self.time and self.gflop is not None:
            raise ValueError("--time bounds milliseconds: give --speedup instead of --gflop")
        self.asked.check()

    def _goal(self, search: "Search", objective: "Quantity") -> "Goal":
        from swiftmask.evaluate.tuning.halving import Goal

        reference = search.reference
        cost = float(reference.flops)
        if self.time:
            reference.generate(*search.study.requests.shown(2, 2))  # what a first call takes is no speed
            cost = search.measure([reference], 1)[0].ms
        share = CHEAPER if self.speedup is None else 1 / self.speedup
        bound = cost * share if self.gflop is None else self.gflop * 1e9
        return Goal(cost=bound, objective=objective, max_loss=self.max_loss, in_ms=self.time)

    def _publish(self, base: "Pipeline", search: "Search", goal: "Goal", found: "Found") -> int:
        """Write the report and, if there is an answer, the preset; print."""
        from swiftmask.core.writing import write_json

        winner = next((tried for tried in found.finalists if goal.met_by(tried)), None)
        bounds = [(flag, getattr(self, flag)) for flag in ("speedup", "gflop", "max_loss")]
        parts = [f"{flag.replace('_', '-')}-{value:g}" for flag, value in bounds if value is not None]
        parts += ["ms"] if self.time else []
        parts += [self.objective] if self.objective else []
        name = "-".join([measure.file_name(base), *parts])
        path = self.out / f"{name}-preset.json"
        report = self._report(search, goal, found, winner, path)
        if winner is not None:
            self._write_preset(search, goal, found, winner, path)
        write_json(self.out / f"{name}-tuning.json", report)
        if self.json:
            measure.print_json(report)
        else:
            _print(report, search)
        return 1 if winner is None else 0

    def _report(
        self, search: "Search", goal: "Goal", found: "Found", winner: "Tried | None", path: Path
    ) -> dict[str, Any]:
        """What was asked, tried and found."""
        asked = f"at most {_cost(goal.cost, goal)} an image"
        if self.speedup is not None:
            asked += f" ({self.speedup:g} times less than {search.reference_steps} full steps)"
        if self.max_loss is None:
            asked = f"the best {goal.objective.key} for {asked}"
        else:
            loss = f"{100 * self.max_loss:g} % of {goal.objective.key}"
            asked = f"the cheapest that loses at most {loss}, for {asked}"
        origin = measure.origin(search.rows_of.base.name, measure.command_of("tune", self))
        return {
            **asdict(origin),
            "asked": asked,
            "answer": _answer(found, winner, path),
            "objective": goal.objective.key,
            "reference": _line(found.reference),
            "best_full": _line(found.best_full),
            "found": winner and winner.name,
            "preset": winner and str(path),
            "confirmed": [_line(tried) for tried in found.finalists],
            "searched": [_line(tried) for tried in search.ranked(goal)],
        }

    def _write_preset(
        self, search: "Search", goal: "Goal", found: "Found", winner: "Tried", path: Path
    ) -> None:
        from swiftmask.evaluate.fingerprints import weights_fingerprint
        from swiftmask.evaluate.presets import Measured, Numbers, Preset, write_preset

        base = search.rows_of.base
        origin = asdict(measure.origin(base.name, measure.command_of("tune", self)))
        found_pipeline = search.rows_of.pipeline(winner.row.settings)

        def numbers(tried: "Tried") -> Numbers:
            return Numbers(name=tried.name, gflop=tried.row.flops / 1e9, ms=tried.ms, values=tried.values)

        preset = Preset(
            model=origin.pop("model"),
            fingerprint=weights_fingerprint(base.model),
            accelerated_fingerprint=weights_fingerprint(found_pipeline.model, found_pipeline.features_fn),
            settings=winner.row.settings,
            measured=Measured(
                found=numbers(winner),
                reference=numbers(found.reference),
                best_full=numbers(found.best_full),
                speedup=found.reference.cost / winner.cost,
                objective=goal.objective.key,
                loss=winner.loss,
                pictures=self.images,
                seeds=self.seeds,
                dtype=self.dtype,
                **origin,
            ),
        )
        write_preset(preset, path)


def _objective(study: "Study", key: str | None) -> "Quantity":
    """Errors: ValueError for a key that no scorer has."""
    known = [quantity for scorer in study.scorers for quantity in scorer.quantities if not quantity.group]
    found = next((quantity for quantity in known if key in (None, quantity.key)), None)
    if found is None:
        raise ValueError(f"--objective {key}: expected one of {', '.join(q.key for q in known)}")
    return found


def _answer(found: "Found", winner: "Tried | None", path: Path) -> str:
    """What came of the search, in a sentence."""
    best = winner or found.finalists[0]
    what = (
        f"{best.name}: {found.reference.cost / best.cost:.2f} times less than {found.reference.name}, loses "
        f"{_percent(best)} against {found.best_full.name}"
    )
    return f"nothing meets the bound; nearest is {what}" if winner is None else f"{what}; preset in {path}"


def _line(tried: "Tried") -> dict[str, Any]:
    """A candidate as it is published."""
    return {
        "name": tried.name,
        "gflop": tried.row.flops / 1e9,
        "ms": tried.ms,
        "images": tried.images,
        "values": {key: asdict(spread) for key, spread in tried.values.items()},
        "loss": asdict(tried.loss),
        "settings": asdict(tried.row.settings),
    }


def _percent(tried: "Tried") -> str:
    """A relative loss with its standard error: "1.2 % (± 0.4)"."""
    return f"{100 * tried.loss.mean:.1f} % (± {100 * tried.loss.spread:.1f})"


def _cost(cost: float, goal: "Goal") -> str:
    return f"{cost:.4g} ms" if goal.in_ms else f"{cost / 1e9:.4g} GFLOP"


def _print(report: dict[str, Any], search: "Search") -> None:
    quantities = [q for scorer in search.study.scorers for q in scorer.quantities if not q.group]
    for title, lines in (("finalists, on fresh images", "confirmed"), ("searched", "searched")):
        shown: Sequence[dict[str, Any]] = report[lines][:20]
        known = [q for q in quantities if all(q.key in line["values"] for line in shown)]
        headings = ["candidate", "GFLOP", "ms", "images", *(q.heading for q in known), "loss (± s.e.)"]
        cells = [
            (
                line["name"],
                f"{line['gflop']:.2f}",
                f"{line['ms']:.1f}",
                str(line["images"]),
                *(f"{line['values'][q.key]['mean']:.3f}" for q in known),
                f"{100 * line['loss']['mean']:.1f} % (± {100 * line['loss']['spread']:.1f})",
            )
            for line in shown
        ]
        measure.print_table(f"{report['model']}: {title}", headings, cells)
    print(f"asked: {report['asked']}\n{report['answer']}")
