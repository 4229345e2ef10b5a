"""What `bench`, `evaluate` and `demo` share: pipelines as rows of a study, and progress on stderr."""

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from swiftmask.cli.progress import counting

if TYPE_CHECKING:
    from rich.console import Console

    from swiftmask.data.scenes import World
    from swiftmask.evaluate.processes import Processes
    from swiftmask.evaluate.quality import Draw, Row, Sample
    from swiftmask.evaluate.study import Store
    from swiftmask.evaluate.subjects import Captions
    from swiftmask.evaluate.summary import Origin, QualityReport
    from swiftmask.pipeline import Pipeline

Caching = Literal["reuse", "extrapolation-1", "extrapolation-2", "ml-cache", "ml-cache-refreshed"]
"""Training-free accelerators."""


def rivals_of(pipeline: "Pipeline") -> tuple[Caching, ...]:
    """Those that a model can be accelerated with: ML-Cache needs one that recomputes single columns."""
    anywhere: tuple[Caching, ...] = ("reuse", "extrapolation-1", "extrapolation-2")
    if not hasattr(pipeline.model, "features_and_cache"):
        return anywhere
    return (*anywhere, "ml-cache", "ml-cache-refreshed")


def shortcut_of(model: str, shortcut: str) -> str:
    """Where the shortcut of a model is: `shortcut`, or for "auto" beside the model, `NAME-shortcut`."""
    return _own(model, shortcut, "shortcut")


def marval_of(model: str, marval: str) -> str:
    """Where the MARVAL student of a model is: `marval`, or for "auto" beside the model, `NAME-marval`."""
    return _own(model, marval, "marval")


def speed_rl_of(model: str, speed_rl: str) -> str:
    """Where the Speed-RL weights of a model are: `speed_rl`, or for "auto" beside it, `NAME-speed-rl`."""
    return _own(model, speed_rl, "speed-rl")


def _own(model: str, chosen: str, method: str) -> str:
    if chosen != "auto":
        return chosen
    beside = _beside(model, method)
    if beside is None:
        from swiftmask.registry import recipe_names

        name = Path(f"{model.rstrip('/')}-{method}").name
        trained = f", or train it (swiftmask train {name})" if name in recipe_names() else ""
        raise ValueError(f"{model} has no {method} of its own: name one, or its folder{trained}")
    return beside


def has_own(model: str, method: str) -> bool:
    """Whether "auto" finds one."""
    return _beside(model, method) is not None


def _beside(model: str, method: str) -> str | None:
    from swiftmask.registry import bundled_names

    beside = Path(f"{model.rstrip('/')}-{method}")
    return str(beside) if beside.is_dir() or beside.name in bundled_names() else None


def student_name(source: str) -> str:
    """What rows of other weights are called: their folder, or the run that left `RUN/model`."""
    path = Path(source).resolve()
    return path.parent.name if path.name in ("model", "policy") else path.name


def denoising_steps(given: Sequence[int]) -> int | tuple[int, int] | None:
    """--denoising-steps as the sampling option: none, one number, or the two ends of an annealed decode."""
    match tuple(given):
        case ():
            return None
        case (steps,):
            return steps
        case (first, last):
            return first, last
    raise ValueError(f"--denoising-steps takes one number or two, got {len(given)}")


def has_diffusion_head(pipeline: "Pipeline") -> bool:
    return hasattr(pipeline.model, "denoise")


def check_budget(steps: int, full_steps: int) -> None:
    """Errors: ValueError unless 1 <= full_steps <= steps."""
    if not 1 <= full_steps <= steps:
        raise ValueError(f"full steps must be between 1 and the number of steps ({steps}), got {full_steps}")


def is_guided(pipeline: "Pipeline") -> bool:
    """Whether its own sampling runs a null branch beside the conditional one."""
    return any(step.guidance != 1.0 for step in pipeline.schedule())


def require_scenes(pipeline: "Pipeline") -> None:
    """Quality is judged on Scenes. Errors: ValueError for a model that draws something else."""
    from swiftmask.data.scenes import CLASS_NAMES

    names = getattr(pipeline.model, "class_names", ())
    if pipeline.model.spec.draws == "prompt":
        captions_of(pipeline)
    elif tuple(names) != CLASS_NAMES:
        raise ValueError(
            f"{pipeline.name} does not generate Scenes classes, and quality is judged on Scenes only"
        )


def captions_of(pipeline: "Pipeline") -> "Captions":
    """What a model that draws prompts is asked when it is judged: captions of the world it was trained on.

    Errors: ValueError if nothing is known of that world.
    """
    from swiftmask.evaluate.subjects import Captions

    height, width = pipeline.picture_size()
    if height != width:
        raise ValueError(f"Scenes are square, and {pipeline.name} generates {height}x{width}")
    return Captions(world=_world(pipeline), size=height)


def _draws_captions(pipeline: "Pipeline") -> bool:
    """Whether it draws prompts and says of which Scenes; others are compared with real pictures only."""
    from swiftmask.core.settings import read_json

    provenance = None if pipeline.folder is None else pipeline.folder / "provenance.json"
    if pipeline.model.spec.draws != "prompt" or provenance is None or not provenance.is_file():
        return False
    return "world" in read_json(provenance)


def _world(pipeline: "Pipeline") -> "World":
    """As the recipe wrote it beside the weights."""
    from swiftmask.core.settings import read_json, settings_of
    from swiftmask.data.scenes import World

    path = (Path() if pipeline.folder is None else pipeline.folder) / "provenance.json"
    try:
        return settings_of(World, read_json(path).get("world"), source=str(path), name="world")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{pipeline.name} does not say which Scenes it was trained on (world in its provenance.json), "
            "and quality is judged on Scenes only"
        ) from error


def row_of(
    pipeline: "Pipeline", steps: int, *, series: str, command: str, reference: str | None = None
) -> "Row":
    """A pipeline with a step count as a row of a study.

    Its name says series and steps, then, where they are chosen, denoising steps ("x") and full steps (":").
    """
    from swiftmask.evaluate.quality import Row
    from swiftmask.evaluate.subjects import Classes

    schedule = pipeline.schedule(steps)
    captions = captions_of(pipeline) if _draws_captions(pipeline) else None
    num_full = sum(step.full for step in schedule)
    return Row(
        name=f"{series}-{steps}{_chosen_denoising(pipeline)}"
        + ("" if pipeline.features_fn is None else f":{num_full}"),
        series=series,
        steps=steps,
        full_steps=num_full,
        calls=pipeline.calls(schedule),
        flops=pipeline.flops(schedule),
        command=command,
        fingerprint=fingerprint(pipeline, schedule if captions is None else (schedule, captions)),
        draw=draw_with(pipeline, steps),
        device=pipeline.model.device,
        reference=reference,
        subjects=captions or Classes(),
    )


def _chosen_denoising(pipeline: "Pipeline") -> str:
    chosen = pipeline.sampling.denoising_steps
    if chosen is None:
        return ""
    return f"x{chosen}" if isinstance(chosen, int) else f"x{chosen[0]}-{chosen[1]}"


def draw_with(pipeline: "Pipeline", steps: int) -> "Draw":
    """A pipeline as what the evaluation draws with."""
    from swiftmask.evaluate.quality import Drawn

    of_class = pipeline.model.spec.draws == "class"

    def draw(what: Any, seeds: list[int]) -> Drawn:
        labels, prompts = (what, None) if of_class else (None, what)
        result = pipeline.generate(labels, prompts=prompts, seeds=seeds, steps=steps, output_type="pt")
        assert not isinstance(result.images, list)
        return Drawn(result.images, result.trajectory.tokens_BL, result.cost.seconds)

    return draw


def fingerprint(pipeline: "Pipeline", schedule: object = None) -> str:
    """Sixteen hex digits of weights and settings of model and accelerator, and of the schedule."""
    from swiftmask.evaluate.fingerprints import exact_fingerprint

    accelerator = None if pipeline.features_fn is None else pipeline.features_fn.name
    weights = exact_fingerprint(pipeline.model, pipeline.features_fn)
    facts = repr((pipeline.model.spec, accelerator, schedule, weights))
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def store_of(pipeline: "Pipeline", folder: Path) -> "Store":
    """The folder of half-done results of a base model."""
    from swiftmask.evaluate.study import Store
    from swiftmask.recipes.provenance import commit

    base = replace(pipeline, features_fn=None, full_steps=None, _flops={})
    return Store(folder, f"{pipeline.name} {fingerprint(base)}", commit=commit(), date=_today())


def refuse_another_model(path: Path, model: str, *, overwrite: bool) -> None:
    """Before anything is measured. Errors: ValueError if `path` is there and no report of `model`."""
    from swiftmask.core.settings import read_json

    if overwrite or not path.exists():
        return
    found = read_json(path, expected="expected a report").get("model")
    if found != model:
        raise ValueError(
            f"{path} is the report of another model ({found}, this is {model}): choose another --out, or "
            "--overwrite to replace it"
        )


REPORTS = ("report.json", "demo.json")
"""What `bench report` and `demo` write beside their report.html."""


def refuse_another_report(path: Path, model: str, command: str, *, overwrite: bool) -> None:
    """Before anything is measured. Errors: ValueError if the folder of `path`, one of `REPORTS`, holds the
    report of another model, of other settings, or of the other command.
    """
    from swiftmask.core.settings import read_json

    refuse_another_model(path, model, overwrite=overwrite)
    there = [path.with_name(name) for name in REPORTS if path.with_name(name).exists()]
    for other in () if overwrite else there:
        found = str(read_json(other, expected="expected a report").get("command", ""))
        if other != path or _what_is_measured(found) != _what_is_measured(command):
            raise ValueError(
                f"{path.parent} holds the report of other settings ({found}): choose another --out, or "
                "--overwrite to replace it"
            )


def _what_is_measured(command: str) -> list[str]:
    """A command without the options that leave the report as it is."""
    words = shlex.split(command)
    own = [place for place, word in enumerate(words) if word in ("--out", "--device", "--batch")]
    return [word for place, word in enumerate(words) if place not in own and place - 1 not in own]


def study(
    rows: "Sequence[Row]",
    sample: "Sample",
    store: "Store",
    *,
    model: str,
    command: str,
    processes: "Processes | None" = None,
) -> "QualityReport":
    """Measure what is missing, with progress on stderr, and summarise.

    Args:
        processes: that share the work (default: this one does all of it).
    """
    from swiftmask.evaluate.processes import Processes
    from swiftmask.evaluate.quality import RealPictures
    from swiftmask.evaluate.study import run_study
    from swiftmask.evaluate.subjects import Captions
    from swiftmask.evaluate.summary import summarise
    from swiftmask.rewards.scenes import load_judge, load_reward

    device, subjects = rows[0].device, rows[0].subjects
    reward = load_reward(device) if isinstance(subjects, Captions) else None
    real = RealPictures(load_judge(device), subjects, reward)
    # GFLOP, not pictures, are the unit of progress: rows differ in cost, and the time left should not.
    gflop = {row.name: row.flops / 1e9 for row in rows}
    total = sum(gflop.values()) * sample.num_pictures * sample.num_seeds
    processes = processes or Processes()
    with counting("generating and judging", total, unit="GFLOP", shown=processes.rank == 0) as advance:
        found = run_study(
            rows,
            sample,
            store,
            real,
            lambda row, count: advance(gflop[row] * count, row),
            processes=processes,
        )
    return summarise(rows, found, sample, origin(model, command))


def origin(model: str, command: str) -> "Origin":
    from swiftmask.evaluate.summary import Origin
    from swiftmask.recipes.provenance import commit, machine

    return Origin(model=model, commit=commit(), date=_today(), machine=machine(), command=command)


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def print_json(content: object) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def print_table(report: "QualityReport") -> None:
    """The table and its caption on stdout, then what was found by kind of fact."""
    from rich.console import Console

    from swiftmask.evaluate.quality_table import caption, fact_table, headings, table

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file has room for the whole table
    _show(console, f"{report.model}: quality and cost", headings(report), table(report), caption(report))
    facts = fact_table(report)
    if facts is not None:
        _show(console, "by kind of fact", facts.headings, facts.cells, facts.caption)


def _show(
    console: "Console", title: str, headings: Sequence[str], cells: Sequence[Sequence[str]], caption: str
) -> None:
    from rich import box
    from rich.table import Table

    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if index else "left", no_wrap=not index)
    for row in cells:
        shown.add_row(*row)
    console.print(shown)
    console.print(caption, highlight=False)


def command_line(*words: object) -> str:
    """What to type for the same again."""
    return shlex.join(["swiftmask", *(str(word) for word in words)])
