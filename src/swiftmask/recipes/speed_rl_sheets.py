"""Sample sheets while Speed-RL trains: the same prompts and seeds at several step counts, one line each.

A sheet goes to the run's folder as a PNG and to its trackers. The training loop hands numbers to trackers and
knows nothing of images, so a run that shows images opens its trackers itself, through accelerate as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from swiftmask.core.optional import library
from swiftmask.core.protocol import MaskedGenerator, SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.writing import write_bytes
from swiftmask.evaluate.sheets import side_by_side
from swiftmask.methods.speed_rl import Prompts, SpeedRLTrainer
from swiftmask.methods.speed_rl.rollouts import as_planned
from swiftmask.recipes.held_out import spread
from swiftmask.training.loop import Progress
from swiftmask.training.processes import on_cpu
from swiftmask.training.setup import TrainingConfig

_NAME = "samples"


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetConfig:
    """When sheets are drawn, and of what.

    Attributes:
        every: updates from one sheet to the next, a multiple of training.save_every: they show the averaged
            policy, as a checkpoint keeps it. 0 draws none.
        steps: numbers of decode steps, a line of images each.
        num_prompts: images in a line; the prompts are spread evenly over the set, the seeds count from 0.

    Errors: ValueError for a number below these.
    """

    every: int = 50
    steps: tuple[int, ...] = (2, 4, 5, 8, 16)
    num_prompts: int = 8

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.steps:
            raise ValueError("sheets.steps must hold at least one number of steps, got none")

    def check(self, training: TrainingConfig) -> None:
        """Errors: ValueError for sheets that no checkpoint would come to."""
        if self.every % training.save_every:
            raise ValueError(
                f"sheets.every must be a multiple of training.save_every ({training.save_every}), or 0 for "
                f"no sheets, got {self.every}"
            )


class Trackers:
    """The trackers of a run."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def log(self, progress: Progress) -> None:
        if progress.metrics:
            self._accelerator.log(progress.metrics, step=progress.step)

    def show(self, pixels_HW3: np.ndarray, step: int) -> None:
        """An image of bytes, to every tracker that takes pictures."""
        for tracker in self._accelerator.trackers:
            show(tracker, pixels_HW3, step)


@contextmanager
def tracked(training: TrainingConfig, folder: Path, name: str) -> Iterator[Trackers]:
    """The trackers that `training.report_to` names, closed at the end; none if it names none."""
    accelerator = Accelerator(cpu=on_cpu(), log_with=list(training.report_to) or None, project_dir=folder)
    if training.report_to:
        accelerator.init_trackers(name)
    try:
        yield Trackers(accelerator)
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def show(tracker: Any, pixels_HW3: np.ndarray, step: int) -> None:
    """Trackers of accelerate agree on little but the method's name, and trackio's does not have it."""
    images_1HW3 = pixels_HW3[None]
    if tracker.name == "tensorboard":
        tracker.log_images({_NAME: images_1HW3}, step=step, dataformats="NHWC")
    elif tracker.name == "trackio":
        trackio = library("trackio", "sample sheets in trackio")
        tracker.log({_NAME: trackio.Image(pixels_HW3)}, step=step)
    elif hasattr(tracker, "log_images"):
        tracker.log_images({_NAME: images_1HW3}, step=step)


class Sheets:
    """Draws sheets into `folder`; an `on_save` of the training loop.

    Args:
        sampling: of the decode, as in training.
    """

    def __init__(
        self,
        config: SheetConfig,
        prompts: Prompts,
        sampling: SamplingOptions,
        folder: Path,
        trackers: Trackers,
    ) -> None:
        self._config = config
        self._what = prompts.at(spread(config.num_prompts, len(prompts.what))).what
        self._sampling = sampling
        self._folder = folder
        self._trackers = trackers

    def __call__(self, step: int, trainer: nn.Module) -> None:
        """The sheet of a checkpoint, if one is due."""
        assert isinstance(trainer, SpeedRLTrainer)
        if self._config.every and step % self._config.every == 0:
            self.draw(step, trainer.policy)

    def first(self, base: MaskedGenerator) -> None:
        """What all others are compared with: the base's own sheet, once."""
        if self._config.every and not self._path(0).exists():
            self.draw(0, base)

    @torch.no_grad()
    def draw(self, step: int, model: MaskedGenerator) -> None:
        """Write and show one sheet."""
        png = side_by_side([self._line(model, count) for count in self._config.steps])
        path = self._path(step)
        write_bytes(path, png)
        self._trackers.show(np.array(Image.open(BytesIO(png))), step)

    def _line(self, model: MaskedGenerator, num_steps: int) -> torch.Tensor:
        most = model.spec.num_tokens
        plan = model.schedule(min(num_steps, most), num_masked=most, options=self._sampling)
        drawn = as_planned(model, self._what, range(len(self._what)), plan)
        return model.to_pixels(drawn.tokens_BL).float()

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}.png"
