"""Every file in configs/: the recipe that it names reads it, and trains from it at toy size."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from swiftmask.cli import main
from swiftmask.cli.overrides import override, read_config_file
from swiftmask.registry import recipe_module
from tests.recipes.conftest import asked_of

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))

FAMILIES = {"maskgit": "maskgit", "lumina": "lumina_dimoo", "meissonic": "meissonic", "mar": "mar"}
"""By the first word of a config's name."""

SMALL: dict[str, list[str]] = {
    "shortcut": [
        "rounds.images_per_round=3",
        "rounds.images_per_update=2",
        "rounds.updates_per_round=1",
        "rounds.step_counts=3,4",
        "size=small",
        "full_steps=2",
    ],
    "speed-rl": [
        f"reward={__name__}:brightness",
        f"held_out={__name__}:darkness",
        "steps=2",
        "speed_rl.num_generations=2",
        "speed_rl.generation_batch_size=2",
        "speed_rl.step_counts=2,3",
        "speed_rl.tuning.lora_r=2",
        "sheets.every=0",
    ],
    "marval": ["data=scenes:classes", "source.num_images=8", "source.held_out=0.5"],
}


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.mean((1, 2, 3))


def darkness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return -brightness(images, prompts)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_of_its_recipe(path: Path) -> None:
    recipe, settings = read_config_file(path)
    assert recipe is not None
    written = override(recipe_module(recipe).recipe(), settings).training
    assert written.batch_size % written.accumulate == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_a_toy_model(
    path: Path,
    toy_models: dict[str, Path],
    teacher_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, _ = read_config_file(path)
    assert recipe is not None
    toys = toy_models | {"mar": teacher_folder}  # which knows Scenes' classes
    toy = asked_of(FAMILIES[path.stem.split("-")[0]], toys)
    training = {"num_steps": 2, "batch_size": 2, "accumulate": 1, "save_every": 1, "log_every": 1}
    settings = [
        *(f"{key}={value}" for key, value in toy.items()),
        *(f"training.{key}={value}" for key, value in training.items()),
        *SMALL[recipe],
    ]
    with pytest.raises(SystemExit) as ended:
        main(["train", "--config", str(path), *settings, "--out", str(tmp_path)])
    assert ended.value.code in (0, None)
    assert (tmp_path / "model" / "config.json").is_file()
    assert f"best checkpoint: {tmp_path / 'best'} (step " in capsys.readouterr().out
