"""`swiftmask train`: run a recipe, or continue it."""

import json as json_module
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress as Bar
from tyro.conf import Positional

from swiftmask.cli.overrides import config_file, leaves, override, read_config_file
from swiftmask.cli.progress import note, progress_bar
from swiftmask.core.writing import write_text
from swiftmask.registry import recipe_module, recipe_names, recipe_purpose
from swiftmask.training.lock import SETTINGS, sole_writer

if TYPE_CHECKING:
    from swiftmask.training.loop import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train what a recipe describes. The same command continues an interrupted run.

    Without a recipe: list them. `config.yaml` in the run's folder has every setting.
    """

    recipe: Positional[str | None] = None
    """Name of the recipe, such as maskgit, or a Python file with a function recipe()."""
    settings: Positional[tuple[str, ...]] = ()
    """Changes to its settings, as in data=products/ training.num_steps=100."""
    config: Path | None = None
    """YAML file of settings, such as a run's config.yaml; it may name the recipe, too."""
    out: Path | None = None
    """Folder of the run; default runs/RECIPE."""
    dry_run: bool = False
    """Print the settings and stop."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from swiftmask.evaluate.processes import Processes
        from swiftmask.training.processes import processes

        named, written = read_config_file(self.config) if self.config else (None, [])
        recipe, settings = self.recipe, list(self.settings)
        if named is not None and recipe is not None and "=" in recipe:  # the file says which recipe it is
            recipe, settings = named, [recipe, *settings]
        recipe = named if recipe is None else recipe
        if recipe is None:
            return self._list_recipes()
        if named is not None and named != recipe:
            raise ValueError(f"{self.config} is of the recipe {named}, not of {recipe}")
        config = override(recipe_module(recipe).recipe(), _last(written, settings))
        check_trackers(config)
        if self.dry_run:
            text = json_module.dumps(asdict(config), indent=2, default=str)
            print(text if self.json else "\n".join(f"{key}={value}" for key, value in leaves(config)))
            return 0
        folder = self.out or Path("runs") / Path(recipe).stem
        speaks = Processes.here().rank == 0
        if speaks:
            note(f"training {recipe} in {folder}; an interrupted run continues at its last checkpoint")
        try:
            with sole_writer(folder), progress_bar(shown=speaks) as bar:
                if speaks:
                    write_text(folder / SETTINGS, config_file(recipe, config))
                finished = config.run(folder, Display(bar))
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command continues from the last checkpoint") from None
        processes().destroy_process_group()
        if speaks:
            self._finish(recipe, folder, finished if isinstance(finished, Path) else folder)
        return 0

    def _finish(self, recipe: str, folder: Path, result: Path) -> None:
        """Say where the model is, and the best checkpoint."""
        from swiftmask.recipes.held_out import best_of

        best = best_of(folder)
        if self.json:
            told = {"recipe": recipe, "result": str(result)}
            print(json_module.dumps(told | ({} if best is None else {"best": str(best[0])})))
            return
        print(f"finished: {result}")
        if best is not None:
            print(f"best checkpoint: {best[0]} ({best[1]})")

    def _list_recipes(self) -> int:
        """Print name and purpose of every recipe."""
        purposes = {name: recipe_purpose(name) for name in recipe_names()}
        if self.json:
            print(json_module.dumps(purposes, indent=2))
            return 0
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("recipe", no_wrap=True)
        table.add_column("what it trains")
        for row in purposes.items():
            table.add_row(*row)
        Console().print(table)
        return 0


def _last(written: list[str], typed: list[str]) -> list[str]:
    """Settings of the file, and what was typed over them."""
    keys = {assignment.partition("=")[0] for assignment in typed}
    return [one for one in written if one.partition("=")[0] not in keys] + typed


def check_trackers(config: object) -> None:
    """Errors: ValueError for a tracker of `report_to` that is not installed."""
    from swiftmask.core.optional import library

    for key, value in leaves(config):
        if key.split(".")[-1] == "report_to":
            assert isinstance(value, tuple)
            for name in value:
                library(name, f"{key}={name}")


class Display:
    """A recipe's `on_log`: a task of the bar for each part of a run, described by the last metrics."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = None
        self._last = ("", 0, 0)  # of two trainings of a run, the second begins anew

    def __call__(self, progress: "Progress") -> None:
        what, step, total = self._last
        if self._task is None or (progress.what, progress.num_steps) != (what, total) or progress.step < step:
            self._task = self._bar.add_task(
                progress.what, total=progress.num_steps, completed=progress.step, unit=_unit(progress)
            )
        self._last = (progress.what, progress.step, progress.num_steps)
        metrics = " ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
        description = f"{progress.what} ({metrics})" if metrics else progress.what
        self._bar.update(self._task, completed=progress.step, description=description)


def _unit(progress: "Progress") -> str:
    """What the steps of a part are, unless its name says it."""
    return "steps" if progress.what == "training" else ""
