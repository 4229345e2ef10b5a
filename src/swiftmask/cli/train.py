"""`swiftmask train`: run a recipe, or continue it."""

import json as json_module
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress as Bar
from tyro.conf import Positional

from swiftmask.cli.overrides import leaves, override
from swiftmask.cli.progress import note, progress_bar
from swiftmask.registry import recipe_module
from swiftmask.training.lock import sole_writer

if TYPE_CHECKING:
    from swiftmask.training.loop import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train what a recipe describes. The same command continues an interrupted run."""

    recipe: Positional[str]
    """Name of the recipe, such as maskgit-scenes."""
    settings: Positional[tuple[str, ...]] = ()
    """Changes to its settings, as in training.num_steps=100."""
    out: Path | None = None
    """Folder of the run; default runs/RECIPE."""
    dry_run: bool = False
    """Print the settings and stop."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        from swiftmask.evaluate.processes import Processes
        from swiftmask.training.processes import processes

        config = override(recipe_module(self.recipe).recipe(), self.settings)
        if self.dry_run:
            text = json_module.dumps(asdict(config), indent=2, default=str)
            print(text if self.json else "\n".join(f"{key}={value}" for key, value in leaves(config)))
            return 0
        folder = self.out or Path("runs") / self.recipe
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out {folder} is a file: name a folder")
        speaks = Processes.here().rank == 0
        if speaks:
            note(f"training {self.recipe} in {folder}; an interrupted run continues at its last checkpoint")
        try:
            with sole_writer(folder), progress_bar(shown=speaks) as bar:
                finished = config.run(folder, Display(bar))
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command continues from the last checkpoint") from None
        processes().destroy_process_group()
        result = str(finished) if isinstance(finished, Path) else str(folder)
        if speaks:
            told = json_module.dumps({"recipe": self.recipe, "result": result})
            print(told if self.json else f"finished: {result}")
        return 0


class Display:
    """A recipe's `on_log`: a task of the bar for each part that it trains, described by the last metrics."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task = None
        self._last = (0, 0)  # step and number of steps: another part has others

    def __call__(self, progress: "Progress") -> None:
        if self._task is None or progress.step < self._last[0] or progress.num_steps != self._last[1]:
            self._task = self._bar.add_task(
                "training", total=progress.num_steps, completed=progress.step, unit="steps"
            )
        self._last = (progress.step, progress.num_steps)
        metrics = " ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
        self._bar.update(
            self._task, completed=progress.step, total=progress.num_steps, description=f"training ({metrics})"
        )
