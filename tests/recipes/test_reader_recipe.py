"""The trainer of readers: a short run learns, a killed one goes on, and bad columns are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from swiftmask.data.sources import DataConfig, open_source
from swiftmask.recipes import reader
from swiftmask.recipes.reader import ReaderBatch, ReaderRecipe, columns_of, train_step
from swiftmask.recipes.tokenizer import TokenizerRecipe
from swiftmask.rewards.reader import load_column_reader
from swiftmask.rewards.reader_networks import WIDTHS, ReaderNetwork, ReaderSettings
from swiftmask.training.setup import TrainingConfig
from tests.toy_pairs import CONCEPTS, NOTICE, STYLES, write_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def short(data: Path, num_steps: int = 2, **settings: object) -> ReaderRecipe:
    training = TrainingConfig(
        num_steps=num_steps, batch_size=12, learning_rate=4e-3, warmup_steps=0, ema_decay=0.9, precision="no"
    )
    small = replace(reader.recipe(), data=str(data), columns=("concept", "style"), size="tiny", num_views=32)
    return replace(small, resolution=32, num_features=32, training=training, **settings)


def test_a_short_run_learns(pairs: Path, tmp_path: Path) -> None:
    """Far more often right than by chance, as provenance says; the notice goes along."""
    recipe = short(pairs, num_steps=40, broken_share=0.05, all_images=True)
    folder = recipe.run(tmp_path)
    made_by = json.loads((folder / "provenance.json").read_text())
    assert made_by["measured"]["style_top1"] > 0.8
    assert made_by["measured"]["concept_top1"] > 0.4
    assert made_by["measured_on"] == "views of trained images"
    assert made_by["licence"] == "CC0"
    assert (folder / "NOTICE.md").read_text() == NOTICE
    found = load_column_reader(folder)
    assert found.settings.columns == {"concept": sorted(CONCEPTS), "style": sorted(STYLES)}
    assert found(torch.rand(2, 3, 48, 48)).features_BD.shape == (2, 32)


def test_a_killed_run_goes_on_as_if_nothing_had_been(pairs: Path, tmp_path: Path) -> None:
    """Half a run and the rest are the whole run, through a tokenizer and with held-out images."""
    codec = TokenizerRecipe(
        data=str(pairs),
        resolution=32,
        size="tiny",
        num_codes=16,
        training=TrainingConfig(num_steps=1, batch_size=8),
    )
    recipe = short(pairs, 4, tokenizer=str(codec.run(tmp_path / "codec")), codec_share=0.5)
    recipe = replace(recipe, training=replace(recipe.training, save_every=2))
    whole = load_column_reader(recipe.run(tmp_path / "whole")).state_dict()

    def kill(progress: object) -> None:
        raise KeyboardInterrupt

    halved = replace(recipe, training=replace(recipe.training, log_every=3))
    with pytest.raises(KeyboardInterrupt):
        halved.run(tmp_path / "halved", kill)
    parts = load_column_reader(halved.run(tmp_path / "halved")).state_dict()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    made_by = json.loads((tmp_path / "halved" / "model" / "provenance.json").read_text())
    assert made_by["measured_on"] == "views of held-out images"
    assert made_by["data"].endswith("30 images, 2 held out")


@pytest.mark.parametrize("network", sorted(WIDTHS))
def test_steps_lower_the_loss(network: str) -> None:
    settings = ReaderSettings(
        name="toy",
        network=network,  # type: ignore[arg-type]
        width=16,
        num_features=32,
        resolution=32,
        columns={"kind": ["a", "b", "c"], "colour": ["red", "blue"]},
    )
    model = ReaderNetwork(settings)
    values_BC = torch.stack([torch.arange(8) % 3, torch.arange(8) % 2], 1)
    batch = ReaderBatch(("kind", "colour"), torch.rand(8, 3, 32, 32), values_BC, torch.arange(8) == 7)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(10):
        loss, metrics = train_step(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert set(metrics) == {"kind_right", "colour_right"}


def test_broken_images_are_taught_to_mean_nothing() -> None:
    """The loss of a broken image is lowest where all values are equally likely, whatever its label."""
    settings = ReaderSettings(
        name="toy", network="conv", width=16, num_features=8, resolution=16, columns={"kind": ["a", "b"]}
    )
    model = ReaderNetwork(settings)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    batch = ReaderBatch(
        ("kind",), torch.rand(2, 3, 16, 16), torch.tensor([[0], [1]]), torch.tensor([True, True])
    )
    even, _ = train_step(model, batch)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([2.0, -2.0]))
    sure, _ = train_step(model, batch)
    assert even.item() == pytest.approx(0.6931, abs=1e-3)
    assert sure > even


def test_classes_are_a_column_where_none_is_named(tmp_path: Path) -> None:
    write_pairs(tmp_path / "mugs", concepts=1)
    write_pairs(tmp_path / "vases", concepts=1)
    for name in ("mugs", "vases"):
        (tmp_path / name / "metadata.jsonl").unlink()
    source = open_source(str(tmp_path), DataConfig())
    (name, (values, numbers_X)), *others = columns_of(source, ()).items()
    assert (name, values, others) == ("class", ("mugs", "vases"), [])
    assert numbers_X.tolist() == [0] * 4 + [1] * 4


def test_columns_that_are_not_there_are_refused_before_training(pairs: Path, tmp_path: Path) -> None:
    for columns, message in (
        (("shape",), r"have no 'shape' in the metadata"),
        (("licence",), "the same licence: there is nothing to tell apart"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(short(pairs), columns=columns).run(tmp_path)
    with pytest.raises(ValueError, match="columns must differ"):
        replace(short(pairs), columns=("style", "style"))
