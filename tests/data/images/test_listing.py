"""Which files are images: those that Pillow reads, whatever the case of their suffix."""

from pathlib import Path

import pytest
from PIL import Image

from swiftmask.data.images.listing import Listing
from swiftmask.data.sources.folder import FolderSource
from swiftmask.evaluate.image_sets import folder_images

READ = ["a.GIF", "b.avif", "c.webp", "d.tiff", "e.BMP", "f.jp2", "g.jfif", "h.tga", "i.png", "j.pbm"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A class `x` with images of many formats, four files that are passed over, and others beside them."""
    (tmp_path / "x").mkdir()
    for name in READ:
        Image.new("RGB", (8, 8)).save(tmp_path / "x" / name.lower())
        (tmp_path / "x" / name.lower()).rename(tmp_path / "x" / name)
    for name in ("k.heic", "l.HEIC", "m.raw", "n", "a.json", "a.txt", ".hidden.heic", "list.jsonl"):
        (tmp_path / "x" / name).write_text("no image")
    (tmp_path / "x/folder.png").mkdir()
    return tmp_path


SAID = "4 files in {} were passed over, not of a format that is read (2 .heic, 1 .raw, 1 without a suffix): "


def test_what_pillow_reads_is_read_and_the_rest_is_counted_and_named(folder: Path) -> None:
    found = Listing.below(folder / "x", but=("i.png",))
    assert found.files == tuple(sorted(set(READ) - {"i.png"}))
    assert found.passed_over.said(Path("f")) == [SAID.format("f") + "k.heic, l.HEIC, m.raw, ..."]


def test_training_and_metrics_read_the_same_files(folder: Path) -> None:
    source = FolderSource(folder)
    assert source.keys == tuple(sorted(f"x/{name}" for name in READ))
    assert {tuple(source.read(i, 8).shape) for i in range(len(READ))} == {(3, 8, 8)}
    pictures = folder_images(folder)
    assert pictures.count == len(READ)
    assert pictures.said == (SAID.format(folder) + "x/k.heic, x/l.HEIC, x/m.raw, ...",)
    assert source.notices() == list(pictures.said)


def test_nothing_is_said_of_a_folder_of_images(folder: Path) -> None:
    for name in ("k.heic", "l.HEIC", "m.raw", "n"):
        (folder / "x" / name).unlink()
    assert folder_images(folder).said == ()


def test_a_folder_of_other_files_is_refused_with_their_names(folder: Path) -> None:
    for name in READ:
        (folder / "x" / name).unlink()
    with pytest.raises(ValueError, match=r"no images found in .*; 4 files .*k\.heic"):
        FolderSource(folder)
    with pytest.raises(ValueError, match=r"has 0 images of a format that Pillow reads.*; 4 files .*k\.heic"):
        folder_images(folder)
