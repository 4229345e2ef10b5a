"""marval at toy size in one of several processes; arguments are TEACHER, IMAGES and RUN.

Started by test_marval_recipe.py, with the environment that torchrun would give.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from swiftmask.data.sources import DataConfig
from swiftmask.recipes import marval
from swiftmask.training.setup import TrainingConfig

if __name__ == "__main__":
    torch.set_num_threads(1)
    teacher, images, run = map(Path, sys.argv[1:])
    training = TrainingConfig(
        num_steps=2, batch_size=8, accumulate=2, warmup_steps=1, precision="no", save_every=1, log_every=1
    )
    data = {"data": str(images), "source": DataConfig(held_out=0.0)}
    replace(marval.recipe(), model=str(teacher), training=training, **data).run(run)
