"""Readers of columns as rewards: what prompts and class names ask for, scores, and what is refused."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from swiftmask.rewards.named import (
    Entry,
    label_of,
    load,
    load_differentiable,
    load_for_classes,
    require_weights,
)
from swiftmask.rewards.reader import load_column_reader
from tests.toy_readers import write_blind_reader

COLUMNS = {"thing": {"apple": 0.5, "pear": 0.3, "nut, dry": 0.2}, "style": {"flat": 0.9, "deep": 0.1}}


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blind_reader(tmp_path_factory.mktemp("readers") / "blind", COLUMNS)


def entry(folder: Path) -> Entry:
    return Entry.parsed(f"reader={folder}:2")


def test_a_score_is_the_mean_probability_of_what_is_asked(blind: Path) -> None:
    """By prompt where columns say it, by class name where there are classes; a value may have a comma."""
    images_B3HW = torch.rand(3, 3, 20, 20)
    asked = {
        "an apple": {"thing": "apple", "style": "deep", "mood": "merry"},
        "a dry nut": {"thing": "nut, dry", "style": "flat", "mood": "sad"},
    }
    assert (entry(blind).name, entry(blind).weight, label_of(entry(blind))) == ("reader", 2.0, "blind")
    of_prompts = load(entry(blind), asked=asked)
    found = of_prompts(images_B3HW, ["a dry nut", "an apple", "a dry nut"])
    assert found.tolist() == pytest.approx([0.55, 0.3, 0.55], abs=1e-5)
    of_classes = load_for_classes(entry(blind), ["nut, dry, flat", "flat, apple", "pear"][:2])
    assert of_classes(images_B3HW, [1, 0, 1]).tolist() == pytest.approx([0.7, 0.55, 0.7], abs=1e-5)
    one_column = load_for_classes(entry(blind), ["pear", "nut, dry"])
    assert one_column(images_B3HW, [1, 0, 0]).tolist() == pytest.approx([0.2, 0.3, 0.3], abs=1e-5)


def test_the_differentiable_score_is_the_mean_logarithm(tmp_path: Path) -> None:
    folder = write_blind_reader(tmp_path / "seeing", COLUMNS)
    reward = load_differentiable(entry(folder), ["apple, deep"])
    found = reward(torch.rand(1, 3, 16, 16, requires_grad=True), [0])
    assert found.item() == pytest.approx((torch.tensor([0.5, 0.1]).log().mean()).item(), abs=1e-5)
    reader = load_column_reader(folder)
    with torch.no_grad():  # one that looks
        reader.network.head.weight.normal_()
    images_B3HW = torch.rand(1, 3, 16, 16, requires_grad=True)
    wanted = reader.wanted_of_classes(["apple, deep"])
    reader.log_probabilities(images_B3HW, wanted, torch.tensor([0])).mean().backward()
    assert images_B3HW.grad is not None
    assert images_B3HW.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, r"looks for what prompts ask for in columns: give prompts in a \.jsonl or \.csv file"),
        ({"an apple": {"mood": "merry"}}, "reads thing, style, and nothing says these of 'an apple'"),
        (
            {"an apple": {"thing": "apple", "style": "flat"}, "a pear": {"thing": "pear"}},
            "'a pear' has no column style, which others have",
        ),
        (
            {"an aple": {"thing": "aple"}},
            "has not learned the thing 'aple' of 'an aple': did you mean 'apple'",
        ),
        ({"an ox": {"thing": "ox"}}, r"has not learned the thing 'ox' of 'an ox' \(it knows 3 values\)"),
    ],
)
def test_prompts_that_ask_for_nothing_known_are_refused(
    blind: Path, asked: Mapping[str, Mapping[str, str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(entry(blind), asked=asked)


def test_classes_and_folders_that_do_not_fit_are_refused(blind: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has not learned 'ox' of the class 'ox, flat': it reads thing, style"
    ):
        load_for_classes(entry(blind), ["apple, flat", "ox, flat"])
    with pytest.raises(ValueError, match="'pear' has no column style, which others have"):
        load_for_classes(entry(blind), ["apple, flat", "pear"])
    with pytest.raises(ValueError, match="the classes of this model have no names"):
        load_for_classes(entry(blind), [])
    reward = load(entry(blind), asked={"an apple": {"thing": "apple"}})
    with pytest.raises(ValueError, match="nothing says what 'a pear' asks for"):
        reward(torch.rand(1, 3, 16, 16), ["a pear"])
    with pytest.raises(ValueError, match="needs its folder, as in reader=runs/reader/model"):
        require_weights(Entry.parsed("reader"))
    with pytest.raises(ValueError, match="a reader is written reader=PATH"):
        Entry.parsed("reader:runs/reader")
    with pytest.raises(FileNotFoundError, match="swiftmask train reader"):
        require_weights(entry(tmp_path / "absent"))
    with pytest.raises(ValueError, match="holds no reader of columns"):
        require_weights(entry(tmp_path))
