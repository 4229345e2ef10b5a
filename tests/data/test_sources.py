"""Data sources: what a folder, a dataset and Scenes say of their images, and splits that never move."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image

from swiftmask.data.scenes import CLASS_NAMES, World, class_scenes, render
from swiftmask.data.sources import (
    DataConfig,
    asked_of_captions,
    held_out,
    labels_of,
    open_source,
    require_captions,
)
from swiftmask.data.sources.scenes import DATA_SEED
from swiftmask.data.sources.source import Classes


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8), colour).save(path)
    return path


def write_rows(folder: Path, *rows: Mapping[str, object]) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_subfolders_are_classes(tmp_path: Path) -> None:
    for name in ("vase/b.png", "mug/deep/a.png", "mug/c.png"):
        picture(tmp_path / name)
    (tmp_path / "mug" / "notes.xyz").write_text("?")
    source = open_source(str(tmp_path), DataConfig())
    assert source.keys == ("mug/c.png", "mug/deep/a.png", "vase/b.png")
    classes = labels_of(source)
    assert (classes.names, classes.labels_X.tolist()) == (("mug", "vase"), [0, 0, 1])
    assert classes.attributes_NA.tolist() == [[0], [1]]
    pixels_3HW = source.read(0, 8)
    assert (pixels_3HW.shape, pixels_3HW.dtype) == ((3, 8, 8), torch.uint8)
    assert pixels_3HW[:, 4, 4].tolist() == [255, 0, 0]
    assert any("notes.xyz" in line for line in source.notices())


def test_metadata_tells_captions_classes_splits_and_licence(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "unnamed.png"):
        picture(tmp_path / name)
    write_rows(
        tmp_path,
        {
            "file_name": "c.png",
            "text": "a mug",
            "captions": ["a mug", "mug"],
            "kind": "mug",
            "licence": "CC0",
        },
        {"file_name": "a.png", "text": "a vase", "kind": "vase", "split": "test"},
        {"file_name": "b.png", "text": "another mug", "kind": "mug", "split": "train"},
    )
    source = open_source(str(tmp_path), DataConfig(classes=("kind",)))
    assert source.keys == ("a.png", "b.png", "c.png")
    assert [source.captions(i) for i in range(3)] == [("a vase",), ("another mug",), ("a mug", "mug")]
    assert source.licence == "CC0"
    assert labels_of(source).names == ("mug", "vase")
    assert labels_of(source).labels_X.tolist() == [1, 0, 0]
    assert source.splits == ("test", "train", "")
    require_captions(source)
    assert any(line.startswith("1 images") and "not in its metadata" in line for line in source.notices())


def test_columns_say_what_captions_ask_for(tmp_path: Path) -> None:
    """A column with gaps is none; a notice lies beside the images."""
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    first = {"file_name": "b.png", "text": "a mug", "captions": ["mug"], "kind": "mug", "number": 3}
    write_rows(
        tmp_path, first, {"file_name": "a.png", "text": "a vase", "kind": "vase", "number": 4, "odd": "x"}
    )
    source = open_source(str(tmp_path), DataConfig())
    assert list(source.column_names) == ["kind", "number"]
    assert list(source.column("kind")) == ["vase", "mug"]
    assert asked_of_captions(source) == {
        "a vase": {"kind": "vase", "number": "4"},
        "a mug": {"kind": "mug", "number": "3"},
        "mug": {"kind": "mug", "number": "3"},
    }
    with pytest.raises(ValueError, match=r"1 images of .* have no 'odd' in the metadata \(first b\.png\)"):
        source.column("odd")
    assert source.notice == ""
    (tmp_path / "NOTICE.md").write_text("By somebody.\n")
    assert source.notice == "By somebody.\n"


def test_a_table_or_texts_beside_the_images_hold_captions_too(tmp_path: Path) -> None:
    picture(tmp_path / "table" / "a.png")
    (tmp_path / "table" / "metadata.csv").write_text('file_name,caption\na.png,"one, two"\n')
    picture(tmp_path / "texts" / "a.png")
    (tmp_path / "texts" / "a.txt").write_text("\ufeffone,\n two\n", encoding="utf-8")
    for name in ("table", "texts"):
        source = open_source(str(tmp_path / name), DataConfig())
        assert source.captions(0) == ("one, two",)
        assert source.classes is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}], "must have a column file_name in every line"),
        ([{"file_name": "a.png"}, {"file_name": "a.png"}], "names a.png more than once"),
        ([{"file_name": "b.png"}], r"1 files of the metadata in .* are not there: b\.png"),
        (
            [{"file_name": "a.png", "kind": ""}],
            "1 images of .* have no 'kind' in the metadata .*file_name, kind",
        ),
    ],
)
def test_bad_metadata_is_named(tmp_path: Path, rows: list[dict[str, object]], message: str) -> None:
    picture(tmp_path / "a.png")
    write_rows(tmp_path, *rows)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path), DataConfig(classes=("kind",)))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file\n')
    with pytest.raises(ValueError, match=r"metadata\.jsonl, line 2"):
        open_source(str(tmp_path), DataConfig())


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "movie.xyz").write_text("?")
    for data, error, message in (
        ("", ValueError, "data is not set"),
        ("scenes:pictures", ValueError, "expected scenes:classes or scenes:captions"),
        (str(tmp_path / "absent"), FileNotFoundError, "no such image folder"),
        (str(tmp_path), ValueError, r"no images found in .*movie\.xyz"),
    ):
        with pytest.raises(error, match=message):
            open_source(data, DataConfig())
    picture(tmp_path / "a.png")
    source = open_source(str(tmp_path), DataConfig())
    with pytest.raises(ValueError, match="has no classes"):
        labels_of(source)
    with pytest.raises(ValueError, match=r"1 of 1 images .* have no caption \(a\.png\)"):
        require_captions(source)


def test_a_damaged_image_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(ValueError, match=r"a\.png"):
        open_source(str(tmp_path), DataConfig()).read(0, 8)


def test_splits_never_move(tmp_path: Path) -> None:
    """More images leave the others where they were, and about the share that was asked for is held out."""
    for i in range(200):
        (tmp_path / f"{i:03d}.png").touch()
    few = open_source(str(tmp_path), DataConfig())
    before = dict(zip(few.keys, held_out(few, 0.2).tolist(), strict=True))
    assert 25 < sum(before.values()) < 55
    for i in range(200):
        (tmp_path / f"0{i:03d}.png").touch()
    many = open_source(str(tmp_path), DataConfig())
    after = dict(zip(many.keys, held_out(many, 0.2).tolist(), strict=True))
    assert len(after) == 400
    assert {key: after[key] for key in before} == before
    larger = held_out(few, 0.5)
    assert all(larger[held_out(few, 0.2)]), "a larger share holds out the same and more"


def test_a_sources_own_splits_count(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    splits = zip("abc", ("train", "test", "validation"), strict=True)
    write_rows(tmp_path, *({"file_name": f"{name}.png", "split": split} for name, split in splits))
    assert held_out(open_source(str(tmp_path), DataConfig()), 0.0).tolist() == [False, True, True]


def test_columns_make_classes_of_their_combinations() -> None:
    classes = Classes.of_columns([("mug", "red"), ("vase", "red"), ("mug", "blue"), ("mug", "red")])
    assert classes.names == ("mug, blue", "mug, red", "vase, red")
    assert classes.labels_X.tolist() == [1, 2, 0, 1]
    assert classes.attributes_NA.tolist() == [[0, 0], [0, 1], [1, 1]]


def test_scenes_are_classes_in_turn() -> None:
    source = open_source("scenes:classes", DataConfig(num_images=100))
    assert labels_of(source).names == CLASS_NAMES
    label = int(labels_of(source).labels_X[70])
    scenes = class_scenes(torch.tensor([label]), torch.tensor([DATA_SEED + 70]))
    expected = (render(scenes, 16)[0] * 255).round().byte()
    assert torch.equal(source.read(70, 16), expected)
    source.read(3, 16)
    assert torch.equal(source.read(70, 16), expected)
    assert source.captions(70) == ()
    assert source.facts == {}


def test_scenes_have_the_captions_of_their_world() -> None:
    world = World(simple_percent=50)
    source = open_source("scenes:captions", DataConfig(num_images=10, world=world))
    assert source.classes is None
    expected = world.captions(torch.arange(DATA_SEED, DATA_SEED + 10))
    assert [source.captions(i) for i in range(10)] == [(text,) for text in expected]
    assert source.facts["world"]["simple_percent"] == 50  # type: ignore[index]
    more = open_source("scenes:captions", DataConfig(num_images=20, world=world))
    assert more.captions(9) == source.captions(9)


def test_a_dataset_is_a_source(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    paths = [picture(tmp_path / f"{colour}.png", colour) for colour in ("red", "blue", "red")]
    columns = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "text": ["a red one", "a blue one", "a red one"],
        "label": ["red", "blue", "red"],
        "odd": [1, 2, 3],
    }
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "table.parquet")
    source = open_source(str(tmp_path / "table.parquet"), DataConfig())
    assert len(source.keys) == 3
    assert labels_of(source).names == ("blue", "red")
    assert labels_of(source).labels_X.tolist() == [1, 0, 1]
    assert source.captions(1) == ("a blue one",)
    assert list(source.column_names) == ["label", "odd"]
    assert list(source.column("odd")) == ["1", "2", "3"]
    assert source.read(1, 8)[:, 4, 4].tolist() == [0, 0, 255]
    with pytest.raises(ValueError, match="no column kind: its columns are image, text, label, odd"):
        open_source(str(tmp_path / "table.parquet"), DataConfig(classes=("kind",)))
    datasets.Dataset.from_dict({"odd": [1]}).to_parquet(tmp_path / "odd.parquet")
    with pytest.raises(ValueError, match="no image column"):
        open_source(str(tmp_path / "odd.parquet"), DataConfig())
