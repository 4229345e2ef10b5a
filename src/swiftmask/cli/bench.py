"""`swiftmask bench quality` and `swiftmask bench speed`: the tables of the README.

`bench report` (bench_report.py) measures the same rows.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from swiftmask.cli import measure
from swiftmask.cli.evaluate import Evaluate

if TYPE_CHECKING:
    from swiftmask.evaluate.quality import Row
    from swiftmask.evaluate.speed import SpeedReport, SpeedSetup, Task
    from swiftmask.evaluate.summary import QualityReport
    from swiftmask.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Way:
    """One way to draw with a model: its options, and the row they make."""

    evaluate: Evaluate
    row: "Row"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchQuality:
    """Quality against cost: the full model at several step counts, accelerators, and training-free rivals.

    Same image seeds and labels in every row. A killed run continues where it was.

    Attributes:
        model: bundled name, model folder or Hugging Face repo id.
        shortcut: the shortcut to measure ("auto" is the model's own, "none" leaves it out; a model with a
            diffusion head may have none).
        steps: step counts of the full model.
        shortcut_budgets: accelerated rows, as STEPS:FULL pairs.
        rivals: training-free accelerators of the backbone, measured at the same pairs (default: all for
            models of codes, none for a diffusion head).
        denoising_steps: of a diffusion head, ancestral, at each of --steps.
        ddim_steps: the same, deterministic.
        disa: the same, annealed over the decode, as FIRST:LAST pairs.
        marval: MARVAL students to measure, by name or folder ("auto" is the model's own).
        marval_steps: their decode steps (default: --steps).
        speed_rl: weights tuned by Speed-RL to measure at --steps, by name or folder ("auto" is the model's
            own).
        pictures: pictures per row for each evaluation seed.
        seeds: evaluation seeds.
        batch: pictures at a time.
        device: where to run ("cpu", "cuda").
        dtype: of the weights.
        out: folder for MODEL-quality.json, .md and -frontier.png.
        json: print JSON instead of a table.
    """

    model: Annotated[str, tyro.conf.Positional]
    shortcut: str = "auto"
    steps: tuple[int, ...] = (4, 6, 8, 12, 16, 24, 32)
    shortcut_budgets: tuple[str, ...] = ("12:4", "16:4", "16:6", "32:8")
    rivals: tuple[measure.Caching, ...] | None = None
    denoising_steps: tuple[int, ...] = ()
    ddim_steps: tuple[int, ...] = ()
    disa: tuple[str, ...] = ()
    marval: tuple[str, ...] = ()
    marval_steps: tuple[int, ...] = ()
    speed_rl: tuple[str, ...] = ()
    pictures: int = 700
    seeds: int = 3
    batch: int = 100
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    out: Path = Path("benchmarks/results")
    json: bool = False

    def run(self) -> int:
        """Measure every row, write the three files, print the table."""
        from swiftmask.api import load
        from swiftmask.evaluate.quality import Sample

        if 1 in self.denoising_steps:
            raise ValueError("--denoising-steps 1: ancestral sampling needs at least 2, take --ddim-steps 1")
        sample = Sample(num_pictures=self.pictures, num_seeds=self.seeds, batch_size=self.batch)
        for text in self.shortcut_budgets:  # a mistake is told before anything is loaded
            parse_budget(text)
        base = load(self.model, dtype=self.dtype, device=self.device)
        measure.require_scenes(base)
        chosen = self.fitted_to(base)
        rows = [way.row for way in chosen.ways(base)]
        if not rows:
            raise ValueError("nothing to measure: give --steps or --shortcut-budgets")
        name = base.name.replace("/", "--")
        store = measure.store_of(base, self.out / f"{name}-quality.partial")
        report = measure.study(rows, sample, store, model=base.name, command=chosen.command())
        self._publish(report, name)
        return 0

    def command(self) -> str:
        """What measures all of it again."""
        words: list[object] = ["bench", "quality", self.model, "--shortcut", self.shortcut]
        words += ["--steps", *self.steps]
        if self.shortcut != "none" or self.rivals:
            words += ["--shortcut-budgets", *self.shortcut_budgets]
        words += ["--rivals", *self.rivals] if self.rivals else []
        for flag in ("denoising_steps", "ddim_steps", "disa", "marval", "marval_steps", "speed_rl"):
            given = getattr(self, flag)
            words += [f"--{flag.replace('_', '-')}", *given] if given else []
        words += ["--pictures", self.pictures, "--seeds", self.seeds, "--batch", self.batch]
        return measure.command_line(*words, "--dtype", self.dtype, "--device", self.device, "--out", self.out)

    def fitted_to(self, base: "Pipeline") -> "BenchQuality":
        """With what "auto" and an option that was left out mean for this model."""
        if not measure.has_diffusion_head(base):
            return replace(self, rivals=measure.RIVALS if self.rivals is None else self.rivals)
        no_own = self.shortcut == "auto" and not measure.has_own(self.model, "shortcut")
        return replace(self, shortcut="none" if no_own else self.shortcut, rivals=self.rivals or ())

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
        """Every way to draw that was asked for."""
        ways = [Way(alone, alone.row(base)) for alone in map(self._evaluate, self.steps)]
        ways += self._accelerated(base)
        known = {way.row.fingerprint for way in ways}  # the model's own sampler may be among those asked for
        ways += (way for way in self._heads(base) if way.row.fingerprint not in known)
        return [*ways, *self._students(base)]

    def _accelerated(self, base: "Pipeline") -> "Iterator[Way]":
        given = [] if self.shortcut == "none" else [{"shortcut": self.shortcut}]
        given += [{"caching": rival} for rival in self.rivals or ()]
        for accelerator in given:
            for steps, full_steps in map(parse_budget, self.shortcut_budgets):
                alone = replace(self._evaluate(steps), full_steps=full_steps, **accelerator)
                compared = steps in self.steps and not measure.has_diffusion_head(base)
                yield Way(alone, alone.row(base, reference=f"vanilla-{steps}" if compared else None))

    def _heads(self, base: "Pipeline") -> "Iterator[Way]":
        """The full model with fewer denoising steps."""
        ancestral: list[tuple[int, ...]] = [(count,) for count in self.denoising_steps]
        ancestral += map(parse_annealing, self.disa)
        for steps in self.steps:
            alone = self._evaluate(steps)
            chosen = [replace(alone, denoising_steps=counts, sampler="ancestral") for counts in ancestral]
            chosen += [replace(alone, denoising_steps=(n,), sampler="ddim") for n in self.ddim_steps]
            yield from (Way(one, one.row(base)) for one in chosen)

    def _students(self, base: "Pipeline") -> "Iterator[Way]":
        """Other weights."""
        for student in self.marval:
            for steps in self.marval_steps or self.steps:
                alone = replace(self._evaluate(steps), marval=student)
                yield Way(alone, alone.row(base))
        for policy in self.speed_rl:
            for steps in self.steps:
                alone = replace(self._evaluate(steps), speed_rl=policy)
                yield Way(alone, alone.row(base))

    def _publish(self, report: "QualityReport", name: str) -> None:
        from swiftmask.evaluate.frontier import save_frontier
        from swiftmask.evaluate.summary import markdown, write_report, write_text

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


def parse_annealing(text: str) -> tuple[int, int]:
    """ "50:5" is 50 denoising steps at first and 5 at last. Errors: ValueError for anything else."""
    return _parse_pair(text, "annealed denoising steps are FIRST:LAST, such as 50:5")


def _parse_pair(text: str, expected: str) -> tuple[int, int]:
    first, _, second = text.partition(":")
    if not (first.isdecimal() and second.isdecimal()):
        raise ValueError(f"{expected}, got {text!r}")
    return int(first), int(second)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSpeed:
    """Time one full and one shortcut step beside the machine's matmul peak, all in the same run.

    Attributes:
        model: a released size (maskgit-256, maskgit-512) with --random-weights, or any model `load` takes.
        random_weights: build the released size with random weights: speed does not depend on them.
        shortcut: shortcut of a loaded model ("auto" is its own).
        dtype: of weights and features.
        device: where to run ("cpu", "cuda").
        batch: pictures per step.
        steps: decode steps of the whole decode that `share` is about.
        full_steps: how many of them run the backbone.
        repeats: timed rounds, after two that do not count.
        whole: time whole decodes for `share`, instead of adding up measured steps.
        matmul_sizes: sides of the square matmuls; the fastest is the peak.
        out: also write the JSON to this file.
        json: print JSON instead of a table.
    """

    model: Annotated[str, tyro.conf.Positional]
    random_weights: bool = False
    shortcut: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    batch: int = 1
    steps: int = 32
    full_steps: int = 12
    repeats: int = 10
    whole: bool = False
    matmul_sizes: tuple[int, ...] = (2048, 4096)
    out: Path | None = None
    json: bool = False

    def run(self) -> int:
        """Measure and print."""
        from swiftmask.evaluate.speed import measure_speed
        from swiftmask.evaluate.summary import write_text
        from swiftmask.recipes.provenance import machine

        measure.check_budget(self.steps, self.full_steps)
        if self.batch < 1 or self.repeats < 1 or self.steps < 2 or not self.matmul_sizes:
            raise ValueError(
                "--batch and --repeats must be at least 1, --steps at least 2, --matmul-sizes given"
            )
        setup = self._setup()
        with measure.progress("timing", setup.num_rounds) as advance:
            report = measure_speed(
                setup,
                model_name=self.model + (" (random weights)" if self.random_weights else ""),
                machine=machine(),
                command=self.command(),
                on_round=lambda: advance(1, "rounds"),
            )
        if self.out is not None:
            write_text(self.out, _as_json(report))
        if self.json:
            measure.print_json(asdict(report))
        else:
            _print_speed(report)
        return 0

    def command(self) -> str:
        """What measures this again."""
        words: list[object] = ["bench", "speed", self.model]
        words += ["--random-weights"] if self.random_weights else ["--shortcut", self.shortcut]
        words += ["--dtype", self.dtype, "--device", self.device, "--batch", self.batch]
        words += ["--steps", self.steps, "--full-steps", self.full_steps, "--repeats", self.repeats]
        return measure.command_line(*words, *(["--whole"] if self.whole else []))

    def _setup(self) -> "SpeedSetup":
        import torch

        from swiftmask.evaluate.speed import SpeedSetup

        fast = self._pipeline()
        assert fast.features_fn is not None
        schedule = fast.schedule(self.steps)
        index = max(1, self.steps // 2)
        before, step = replace(schedule[index - 1], full=True), schedule[index]
        vanilla = replace(fast, features_fn=None, full_steps=None, _flops={})
        both = fast.flops([before, replace(step, full=False)])
        return SpeedSetup(
            model=fast.model,
            accelerated=fast.features_fn,
            schedule=schedule,
            full_flops=self.batch * vanilla.flops([replace(step, full=True)]),
            fast_flops=self.batch * (both - vanilla.flops([before])),
            dtype=getattr(torch, self.dtype),
            batch=self.batch,
            repeats=self.repeats,
            decodes=(self._decode_with(fast), self._decode_with(vanilla)) if self.whole else None,
            matmul_sizes=self.matmul_sizes,
        )

    def _pipeline(self) -> "Pipeline":
        from swiftmask.api import accelerate, load

        if self.random_weights:
            return self._random_pipeline()
        shortcut = measure.shortcut_of(self.model, self.shortcut)
        base = load(self.model, dtype=self.dtype, device=self.device)
        return accelerate(base, shortcut=shortcut, full_steps=self.full_steps)

    def _random_pipeline(self) -> "Pipeline":
        import torch

        from swiftmask.api import accelerate
        from swiftmask.methods.shortcut import RELEASED_SHORTCUT, Shortcut
        from swiftmask.models.maskgit import MaskGIT
        from swiftmask.models.maskgit.codec import VQGAN
        from swiftmask.models.maskgit.weights import RELEASED_VQGAN, random_transformer
        from swiftmask.pipeline import Pipeline

        transformer = random_transformer(self.model).to(self.device, getattr(torch, self.dtype))
        with torch.device("meta"):
            codec = VQGAN(RELEASED_VQGAN)  # no step touches the codec, so it takes no memory
        model: Any = MaskGIT(transformer, codec).requires_grad_(False)  # the protocol's Condition is wider
        base = Pipeline(model, name=self.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            shortcut = Shortcut(RELEASED_SHORTCUT).requires_grad_(False)
        return accelerate(base, shortcut=shortcut, full_steps=self.full_steps)

    def _decode_with(self, pipeline: "Pipeline") -> "Task":
        labels, seeds = [0] * self.batch, list(range(self.batch))
        schedule = pipeline.schedule(self.steps)

        def decode_once() -> object:
            condition = pipeline.model.encode(labels)
            return pipeline._decode(condition, schedule, seeds, pipeline.model.blank(self.batch), None)

        return decode_once


def _as_json(report: "SpeedReport") -> str:
    import json

    return json.dumps(asdict(report), indent=2) + "\n"


def _print_speed(report: "SpeedReport") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{report.model}, {report.dtype}, batch {report.batch}, {report.device}", show_header=False
    )
    lines = (
        ("full step", f"{report.full_step_ms:.1f} ms (IQR {report.full_step_iqr_ms:.1f})"),
        ("shortcut step", f"{report.shortcut_step_ms:.2f} ms (IQR {report.shortcut_step_iqr_ms:.2f})"),
        ("full / shortcut", f"{report.ratio:.1f}"),
        ("operations of a full step", f"{report.full_step_flops / 1e9:.1f} GFLOP"),
        ("matmul peak", f"{report.matmul_peak_flops / 1e9:.0f} GFLOP/s"),
        ("full step, share of that peak", f"{100 * report.peak_share:.0f} %"),
        (
            f"{report.steps} steps with {report.full_steps} full, of all full",
            f"{report.share:.2f} ({report.share_from})",
        ),
        ("peak memory", f"{report.peak_memory_bytes / 1e6:.0f} MB"),
        ("machine", report.machine),
        ("command", report.command),
    )
    for line in lines:
        table.add_row(*line)
    Console().print(table)
