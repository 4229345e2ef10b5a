"""Recipes on a GPU that refuses what lies elsewhere: one update of each part, and what it leaves."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from swiftmask.recipes import scenes_readers
from swiftmask.registry import recipe_module
from tests.rehearsal.gpu import Rehearsal

SMALLER: dict[str, object] = {
    "num_steps": 1,
    "save_every": 1,
    "log_every": 1,
    "batch_size": 6,
    "num_pictures": 8,
    "num_captions": 8,
    "images_per_round": 4,
    "updates_per_round": 1,
    "images_per_update": 2,
    "step_counts": (4,),
    "num_generations": 3,
    "generation_batch_size": 6,
    "images_per_forward": 6,
    "every": 0,
    "num_held_out": 8,
    "grad_iterations": 1,
}
"""Settings by their names, wherever a recipe has them."""


def smaller(config: Any) -> Any:
    """A recipe's settings, nested as they are, with those of `SMALLER`."""
    changes = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in SMALLER and value is not None:
            changes[field.name] = SMALLER[field.name]
        elif is_dataclass(value):
            changes[field.name] = smaller(value)
    return replace(config, **changes)


REHEARSED = ("mar-scenes-codec", "maskgit-scenes-shortcut")
"""Recipes seen to run. The others are to follow, until this is `recipe_names()`."""


@pytest.mark.parametrize("name", REHEARSED)
def test_a_recipe_runs(name: str, gpu: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes_readers.held_out_accuracy, "__defaults__", (8,))
    recipe = smaller(recipe_module(name).recipe())
    recipe.run(tmp_path)
    assert gpu.whole.num_kernels > 0
