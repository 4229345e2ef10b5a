"""dimoo-scenes at toy size in one process of several: `python one_of_several.py FOLDER`.

Started by test_dimoo_scenes_recipe.py, with the environment that torchrun would give.
"""

import sys
from pathlib import Path

import torch
from test_dimoo_scenes_recipe import tiny

if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny().run(Path(sys.argv[1]))
