"""Sample sheets: which images, when, and to which trackers."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swiftmask.core.protocol import SamplingOptions
from swiftmask.methods.speed_rl import Prompts, SpeedRLConfig, SpeedRLTrainer, TuningConfig
from swiftmask.models.maskgit import MaskGIT
from swiftmask.recipes.speed_rl import first_guesses
from swiftmask.recipes.speed_rl_sheets import SheetConfig, Sheets, Trackers, show

CONFIG = SpeedRLConfig(
    tuning=TuningConfig(method="full", targets=r"transformer\.bias"),
    num_generations=2,
    generation_batch_size=2,
    step_counts=(2,),
)


class Recorder:
    """A tracker that keeps what it is given."""

    def __init__(self, name: str) -> None:
        self.name, self.shown = name, list[tuple[dict[str, np.ndarray], dict[str, Any]]]()

    def log_images(self, values: dict[str, np.ndarray], **options: Any) -> None:
        self.shown.append((values, options))


def sheets(folder: Path, recorder: Recorder, config: SheetConfig) -> Sheets:
    accelerator: Any = SimpleNamespace(trackers=[recorder, SimpleNamespace(name="numbers only")])
    return Sheets(config, Prompts(range(7)), SamplingOptions(), folder, Trackers(accelerator))


def test_a_line_of_the_same_images_for_every_step_count(golden_maskgit: MaskGIT, tmp_path: Path) -> None:
    recorder = Recorder("wandb")
    samples = sheets(tmp_path, recorder, SheetConfig(every=4, steps=(1, 3, 16), num_prompts=3))
    samples.first(golden_maskgit)
    samples.first(golden_maskgit)
    trainer = SpeedRLTrainer(golden_maskgit, CONFIG)
    for step in range(1, 9):
        samples(step, trainer)
    with torch.no_grad():
        trainer.policy.transformer.bias[:, 5] += 100  # type: ignore[attr-defined]
    samples(12, trainer)
    names = ["step-000000.png", "step-000004.png", "step-000008.png", "step-000012.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    base, same, _, tuned = ((tmp_path / name).read_bytes() for name in names)
    assert base == same != tuned
    with Image.open(tmp_path / names[0]) as image:
        assert image.size == (3 * (16 + 4) + 4, 3 * (16 + 4) + 4)  # 8 pixels, twice as large, gaps of 4
        pixels_HW3 = np.array(image)
    assert [options for _, options in recorder.shown] == [{"step": step} for step in (0, 4, 8, 12)]
    np.testing.assert_array_equal(recorder.shown[0][0]["samples"], pixels_HW3[None])


def test_none_are_drawn_where_none_are_wanted(golden_maskgit: MaskGIT, tmp_path: Path) -> None:
    samples = sheets(tmp_path, Recorder("wandb"), SheetConfig(every=0))
    samples.first(golden_maskgit)
    samples(0, SpeedRLTrainer(golden_maskgit, CONFIG))
    assert not list(tmp_path.iterdir())


def test_tensorboard_is_told_the_order_of_axes() -> None:
    recorder: Any = Recorder("tensorboard")
    show(recorder, np.zeros((4, 6, 3), np.uint8), 7)
    ((values, options),) = recorder.shown
    assert values["samples"].shape == (1, 4, 6, 3)
    assert options == {"step": 7, "dataformats": "NHWC"}


def test_sheets_come_with_checkpoints() -> None:
    training = replace(first_guesses(CONFIG), save_every=20)
    SheetConfig(every=40).check(training)
    SheetConfig(every=0).check(training)
    with pytest.raises(ValueError, match=r"multiple of training.save_every \(20\).* got 50"):
        SheetConfig(every=50).check(training)


@pytest.mark.parametrize("changes", [{"every": -1}, {"steps": ()}, {"steps": (0,)}, {"num_prompts": 0}])
def test_impossible_sheets_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must"):
        SheetConfig(**changes)
