"""`swiftmask evaluate` on a model that draws captions, and with weights tuned by Speed-RL."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import swiftmask
from swiftmask.cli.bench import BenchQuality
from swiftmask.cli.evaluate import Evaluate
from swiftmask.methods.speed_rl import TuningConfig, make_policy, write_policy
from swiftmask.methods.speed_rl.policy import trained_parameters
from swiftmask.models.meissonic import Meissonic
from tests.toy_models import caption_folder

TUNING = TuningConfig(targets=r"transformer\.mlm_layer\..*", method="full")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Meissonic with the words of captions, 4x4 tokens, and weights tuned from it beside it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    caption_folder("meissonic", folder)
    policy = make_policy(Meissonic.from_pretrained(folder), TUNING)
    with torch.no_grad():
        for parameter in trained_parameters(policy).values():
            parameter.add_(torch.randn_like(parameter))
    write_policy(folder.with_name("tiny-speed-rl"), policy, tuning=TUNING, provenance={}, steps=2)
    return folder


def test_a_row_of_tuned_weights(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Evaluate(
        model=str(model_folder),
        steps=2,
        pictures=6,
        seeds=1,
        batch=6,
        out=tmp_path,
        json=True,
        speed_rl="auto",
    )
    assert command.run() == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["name"], row["series"]) == ("tiny-speed-rl-2", "tiny-speed-rl")
    assert "--speed-rl auto" in row["command"]
    assert 0 <= row["training_reward"]["mean"] <= 1
    assert row["diversity"]["mean"] > 0
    assert (tmp_path / "evaluate-tiny-speed-rl-2.json").exists()
    base = swiftmask.load(model_folder)
    assert replace(command, speed_rl=None).row(base).fingerprint != command.row(base).fingerprint
    replace(command, speed_rl=None, json=False).run()
    printed = " ".join(capsys.readouterr().out.split())
    assert "diversity" in printed
    assert "training reward" in printed.lower()


def test_tuned_weights_at_steps_of_their_own(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = BenchQuality(
        model=str(model_folder),
        shortcut="none",
        rivals=(),
        steps=(3,),
        speed_rl=("auto",),
        speed_rl_steps=(1, 2),
        temperatures=(0.5,),
        pictures=4,
        seeds=1,
        batch=4,
        out=tmp_path,
        json=True,
    )
    assert command.run() == 0
    report = json.loads(capsys.readouterr().out)
    tuned = [f"{sharper}tiny-speed-rl-{steps}" for sharper in ("", "temperature-0.5+") for steps in (1, 2)]
    assert [row["name"] for row in report["rows"]] == ["vanilla-3", "temperature-0.5-3", *tuned]
    assert "--speed-rl auto --speed-rl-steps 1 2" in report["command"]


def test_the_world_must_be_known(model_folder: Path, tmp_path: Path) -> None:
    Meissonic.from_pretrained(model_folder).save_pretrained(tmp_path / "other", provenance={"recipe": "x"})
    with pytest.raises(ValueError, match="does not say which Scenes it was trained on"):
        Evaluate(model=str(tmp_path / "other"), pictures=2, seeds=1, out=tmp_path).run()


@pytest.mark.parametrize(
    ("name", "trained"),
    [("alone", ""), ("maskgit-scenes", r", or train it \(swiftmask train maskgit-scenes-speed-rl\)")],
)
def test_without_tuned_weights_auto_says_how_to_get_them(
    model_folder: Path, tmp_path: Path, name: str, trained: str
) -> None:
    """A recipe is named if there is one of that name."""
    model = tmp_path / name
    Meissonic.from_pretrained(model_folder).save_pretrained(
        model, provenance={"world": {"simple_percent": 100}}
    )
    with pytest.raises(
        ValueError, match=rf"{name} has no speed-rl of its own: name one, or its folder{trained}$"
    ):
        Evaluate(model=str(model), speed_rl="auto", pictures=2, seeds=1, out=tmp_path).run()


def test_pictures_that_are_not_square_are_no_scenes(model_folder: Path) -> None:
    from swiftmask.cli.measure import captions_of

    pipeline = swiftmask.load(model_folder)
    assert captions_of(pipeline).size == 8
    wide = replace(pipeline, model=pipeline.model.sized(8, 16))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="Scenes are square, and tiny generates 8x16"):
        captions_of(wide)
