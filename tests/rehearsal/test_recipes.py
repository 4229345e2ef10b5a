"""Every recipe on a GPU that refuses what lies elsewhere: one update of each part, and what it leaves.

A recipe is rehearsed because it exists. Settings named in `SMALLER` are made small wherever a recipe has
them; what a recipe asks for stands in `ASKED`.
"""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fake_gpu import Rehearsal

from swiftmask.recipes import scenes_readers
from swiftmask.registry import WEIGHTS, recipe_module, recipe_names
from tests.toy_pairs import write_pairs

SMALLER: dict[str, object] = {
    "num_steps": 1,
    "save_every": 1,
    "log_every": 1,
    "batch_size": 6,
    "accumulate": 1,
    "num_pictures": 8,
    "num_captions": 8,
    "num_images": 8,
    "num_codes": 64,
    "kept_codes": 32,
    "number": 2,
    "steps": 2,
    "judged": 4,
    "num_views": 8,
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

_CLASSES, _CAPTIONS = {"data": "scenes:classes"}, {"data": "scenes:captions"}
PAIRS = "a folder of pairs"
"""Stands for one that the test writes."""

_SCORED = {"reward": ("scenes-reward",), "held_out": ("scenes-judge",)}
ASKED: dict[str, dict[str, Any]] = {
    "tokenizer": _CLASSES,
    "reader": _CLASSES,
    "maskgit": {"tokenizer": str(WEIGHTS / "maskgit-scenes"), **_CLASSES},
    "mar": {"tokenizer": str(WEIGHTS / "mar-scenes"), **_CLASSES},
    "meissonic": {"tokenizer": str(WEIGHTS / "meissonic-scenes"), **_CAPTIONS},
    "lumina-dimoo": {"tokenizer": str(WEIGHTS / "dimoo-scenes"), **_CAPTIONS},
    "shortcut": {"model": "maskgit-scenes"},
    "speed-rl": {"model": "maskgit-scenes", **_SCORED},
    "marval": {"model": "mar-scenes", **_CLASSES},
    "marval-rl": {"model": "mar-scenes", "student": "mar-scenes-marval", **_CLASSES, **_SCORED},
    "emoji-tokenizer": {"data": PAIRS},
    "emoji-codec": {"data": PAIRS},
    "emoji-reward": {"data": PAIRS, "tokenizer": str(WEIGHTS / "maskgit-scenes")},
    "emoji-judge": {"data": PAIRS, "tokenizer": ""},
    "maskgit-emoji": {"data": PAIRS, "tokenizer": str(WEIGHTS / "maskgit-scenes")},
    "mar-emoji": {"data": PAIRS, "tokenizer": str(WEIGHTS / "mar-scenes")},
    "meissonic-emoji": {"data": PAIRS, "tokenizer": str(WEIGHTS / "meissonic-scenes")},
    "dimoo-emoji": {"data": PAIRS, "tokenizer": str(WEIGHTS / "dimoo-scenes")},
    "maskgit-emoji-shortcut": {"model": "maskgit-scenes"},
    "meissonic-emoji-shortcut": {"model": "meissonic-scenes", **_CAPTIONS},
    "dimoo-emoji-shortcut": {"model": "dimoo-scenes", **_CAPTIONS},
    "meissonic-emoji-speed-rl": {"model": "meissonic-scenes", **_CAPTIONS, **_SCORED},
    "mar-emoji-marval": {"model": "mar-scenes", **_CLASSES},
    "mar-emoji-marval-rl": {
        "model": "mar-scenes",
        "student": "mar-scenes-marval",
        **_CLASSES,
        **_SCORED,
    },
}
"""What a recipe asks for, by its name."""


def smaller(config: Any) -> Any:
    """A recipe's settings, nested as they are, with those of `SMALLER`."""
    changes = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in SMALLER and isinstance(value, type(SMALLER[field.name])):
            changes[field.name] = SMALLER[field.name]
        elif is_dataclass(value):
            changes[field.name] = smaller(value)
    return replace(config, **changes)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_runs(name: str, gpu: Rehearsal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes_readers.held_out_accuracy, "__defaults__", (8,))
    asked = ASKED.get(name, {})
    if PAIRS in asked.values():
        asked = asked | {"data": str(write_pairs(tmp_path / "pairs"))}
    smaller(replace(recipe_module(name).recipe(), **asked)).run(tmp_path / "run")
    assert gpu.whole.num_kernels > 0
