"""Every recipe on a GPU that refuses what lies elsewhere: one update of each part, and what it leaves.

A recipe is rehearsed because it exists. Settings named in `SMALLER` are made small wherever a recipe has
them; files that a recipe asks for (settings left None) are made by a fixture, by the setting's name.
"""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from swiftmask.models.mar import MAR
from swiftmask.models.mar.codec import KLCodec, KLConfig
from swiftmask.recipes import scenes_readers
from swiftmask.registry import recipe_module, recipe_names
from tests.rehearsal.gpu import Rehearsal

SMALLER: dict[str, object] = {
    "num_steps": 1,
    "save_every": 1,
    "log_every": 1,
    "batch_size": 6,
    "accumulate": 1,
    "num_pictures": 8,
    "num_captions": 8,
    "num_images": 8,
    "judged": 4,
    "images_per_round": 4,
    "updates_per_round": 1,
    "images_per_update": 2,
    "step_counts": (4,),
    "full_steps": 2,
    "num_generations": 3,
    "generation_batch_size": 6,
    "images_per_forward": 6,
    "every": 0,
    "grad_iterations": 1,
}
"""Settings by their names, wherever a recipe has them."""

_SCENES = {"reward": ("scenes-reward",), "held_out": ("scenes-judge",)}
ASKED: dict[str, dict[str, Any]] = {
    "shortcut": {"model": "maskgit-scenes"},
    "speed-rl": {"model": "maskgit-scenes", **_SCENES},
    "marval": {"model": "mar-scenes", "data": "scenes:classes"},
    "marval-rl": {"model": "mar-scenes", "data": "scenes:classes", "student": "mar-scenes-marval", **_SCENES},
    "marval-imagenet": {"model": "mar-scenes", "data": "scenes:classes"},
}
"""What a recipe asks for, by its name."""


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory, golden_mar: MAR) -> dict[str, Path]:
    """What recipes ask for, by setting: images of as many classes as the teacher has, one each."""
    folder = tmp_path_factory.mktemp("files")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
    for label, pixels_HW3 in enumerate(pixels):
        (folder / "images" / f"class-{label}").mkdir(parents=True)
        Image.fromarray(pixels_HW3).save(folder / "images" / f"class-{label}" / "0.png")
    sizes = KLConfig(ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), resolution=16, z_channels=2)
    torch.save({"model": KLCodec(sizes).state_dict()}, folder / "kl16.ckpt")
    golden_mar.save_pretrained(folder / "teacher", provenance={})
    return {"images": folder / "images", "codec": folder / "kl16.ckpt", "teacher": folder / "teacher"}


def smaller(config: Any, files: dict[str, Path]) -> Any:
    """A recipe's settings, nested as they are, with those of `SMALLER` and the files that are not set."""
    changes = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if value is None and field.name in files:
            changes[field.name] = files[field.name]
        elif field.name in SMALLER and value is not None:
            changes[field.name] = SMALLER[field.name]
        elif is_dataclass(value):
            changes[field.name] = smaller(value, files)
    return replace(config, **changes)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_runs(
    name: str, gpu: Rehearsal, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes_readers.held_out_accuracy, "__defaults__", (8,))
    recipe = replace(recipe_module(name).recipe(), **ASKED.get(name, {}))
    smaller(recipe, files).run(tmp_path)
    assert gpu.whole.num_kernels > 0
