"""The recipes of dimoo-scenes at toy size: from nothing to a model folder, its shortcut, and pictures."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import swiftmask
from swiftmask.api import CACHINGS
from swiftmask.cli import main
from swiftmask.data.scenes import World
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.recipes import dimoo_scenes, dimoo_scenes_shortcut
from swiftmask.recipes.base_model import BaseModelRecipe, SampleConfig
from swiftmask.recipes.shortcut import ShortcutRecipe
from swiftmask.training.setup import TrainingConfig

FEW = TrainingConfig(num_steps=2, batch_size=8, precision="no")


def tiny() -> BaseModelRecipe:
    real = dimoo_scenes.recipe()
    assert real.codec is not None
    codec = replace(real.codec, num_codes=16, kept_codes=8, size="tiny", resolution=16, training=FEW)
    few = replace(real.source, num_images=48)
    training = replace(FEW, precision="bf16-weights", muon_learning_rate=1e-3)
    return replace(
        real,
        codec=replace(codec, source=few),
        source=few,
        network=replace(real.network, width=16, depth=1, num_heads=2, mlp_width=16),
        training=training,
        samples=SampleConfig(number=0),
    )


def tiny_shortcut(base: Path) -> ShortcutRecipe:
    real = dimoo_scenes_shortcut.recipe()
    return replace(
        real,
        rounds=replace(
            real.rounds, images_per_round=3, images_per_update=2, updates_per_round=2, step_counts=(3, 4)
        ),
        training=replace(FEW, num_steps=3, precision="bf16"),
        model=str(base),
        full_steps=2,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of both recipes: `base` and `shortcut`."""
    folder = tmp_path_factory.mktemp("runs")
    base = tiny().run(folder / "base")
    tiny_shortcut(base).run(folder / "shortcut")
    return folder


def captions(count: int = 2) -> list[str]:
    return World().captions(torch.arange(count))


def test_the_trained_folder_draws(trained: Path) -> None:
    pipeline = swiftmask.load(trained / "base" / "model")
    assert isinstance(pipeline.model, LuminaDiMOO)
    assert pipeline.model.spec.grid == (4, 4)
    assert pipeline.model.spec.codebook_size == 8
    result = pipeline.generate(prompts=captions(), steps=3, output_type="pt")
    assert isinstance(result.images, Tensor)
    assert result.images.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="unknown word 'hexagonal'"):
        pipeline.generate(prompts=["a hexagonal circle"])


def test_the_trained_shortcut_accelerates_it(trained: Path) -> None:
    pipeline = swiftmask.load(trained / "base" / "model")
    fast = swiftmask.accelerate(pipeline, shortcut=trained / "shortcut" / "model")
    result = fast.generate(prompts=captions(), steps=6, output_type="pt")
    assert result.cost.calls["backbone"] == 2, "the budget its config recommends"
    assert result.cost.calls["shortcut"] == 4
    assert result.cost.flops < pipeline.flops(pipeline.schedule(6))


def test_the_command_line_draws_with_the_bundled_pair(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "dimoo-scenes").symlink_to(trained / "base" / "model")
    (weights / "dimoo-scenes-shortcut").symlink_to(trained / "shortcut" / "model")
    monkeypatch.setattr("swiftmask.registry.WEIGHTS", weights)
    out, prompt = tmp_path / "pictures", captions(1)[0]
    wanted = ["generate", "dimoo-scenes", "--prompt", prompt, "--shortcut", "auto", "--full-steps", "6"]
    with pytest.raises(SystemExit) as stop:
        main([*wanted, "--steps", "8", "--out", str(out)])
    assert stop.value.code == 0
    summary = json.loads((out / "generate.json").read_text())
    assert summary["cost"]["calls_per_picture"]["shortcut"] == 2
    assert summary["pictures"][0]["what"] == prompt
    assert (out / summary["pictures"][0]["file"]).is_file()


@pytest.mark.parametrize("caching", sorted(CACHINGS))
def test_every_rival_runs_on_it(caching: str, trained: Path) -> None:
    baseline = swiftmask.accelerate(swiftmask.load(trained / "base" / "model"), caching=caching, full_steps=2)
    result = baseline.generate(prompts=captions(), steps=3, output_type="pt")
    assert result.cost.calls["backbone"] == 2
    assert (result.trajectory.tokens_BL < 8).all()


@pytest.mark.slow  # MARVAL in two processes (test_marval_recipe.py) encodes, trains and writes so, too
def test_two_processes_leave_one_model(tmp_path: Path, in_processes: Callable[..., None]) -> None:
    """The first draws the images for both, and both may write what they trained together."""
    in_processes(Path(__file__).with_name("one_of_several.py"), tmp_path, count=2)
    assert isinstance(swiftmask.load(tmp_path / "model").model, LuminaDiMOO)
    assert not list(tmp_path.rglob("*.partial"))
    logged = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [2]
