"""A short run of Speed-RL in one process of several: `python one_of_several.py FOLDER`.

Started by test_processes.py, with the environment that torchrun would give.
"""

import sys
from pathlib import Path

import torch
from conftest import brightness, toy_model

from swiftmask.methods.speed_rl import (
    Judge,
    Prompts,
    Reward,
    Rounds,
    Scorers,
    SpeedRLConfig,
    SpeedRLTrainer,
    TuningConfig,
)
from swiftmask.recipes.runs import training_device
from swiftmask.training.loop import train
from swiftmask.training.setup import TrainingConfig, train_step


def share_of_dark_pixels(images, prompts):
    """Of each image by itself: a judge that looks at its batch would see other ones."""
    return (images < images.mean(dim=(1, 2, 3), keepdim=True)).float().mean(dim=(1, 2, 3))


def main(folder: Path) -> None:
    training_device()  # a recipe asks before the loop does
    config = SpeedRLConfig(
        tuning=TuningConfig(method="full", targets=r"transformer\.transformer\..*\.net\.\d\.weight"),
        num_generations=4,
        generation_batch_size=16,
        num_iterations=2,
        step_counts=(2, 4),
        speed_weight=0.0,
    )
    training = TrainingConfig(
        num_steps=4, batch_size=16, warmup_steps=1, save_every=4, log_every=1, precision="no"
    )
    scorers = Scorers([Reward("dark", share_of_dark_pixels)], [Judge("brightness", brightness)])
    trainer = SpeedRLTrainer(toy_model(), config)
    rounds = Rounds(trainer, Prompts([0, 1, 2]), scorers, training)
    train(trainer, rounds.batch, train_step, training, folder, name="toy")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
