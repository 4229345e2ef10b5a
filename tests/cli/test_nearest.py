"""`swiftmask nearest` on a folder of pairs: copies are found, and what the nearest images have in common."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from swiftmask.cli.nearest import NearestImages
from swiftmask.evaluate.nearest import copy_bound, nearest_of
from tests.toy_pairs import CONCEPTS, STYLES, write_pairs


class Pooled(nn.Module):
    """Colours of a 4x4 grid."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def generated(folder: Path, pairs: Path, asked: dict[str, str]) -> Path:
    """Copies of images of the data, each noting what a model was asked for."""
    folder.mkdir()
    for number, (name, what) in enumerate(asked.items()):
        info = PngInfo()
        info.add_text("swiftmask", json.dumps({"what": what, "seed": 0}))
        with Image.open(pairs / name) as image:
            image.save(folder / f"{number}.png", pnginfo=info)
    return folder


def test_copies_and_what_is_composed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy of what was asked, a copy of another style, and the held-out pair itself, which is no copy."""
    pairs = write_pairs(tmp_path / "pairs")
    torch.jit.script(Pooled()).save(tmp_path / "pooled.pt")
    asked = {
        "1-0.png": f"{CONCEPTS[1]}, {STYLES[0]} style",
        "2-3.png": f"a {STYLES[1]} {CONCEPTS[2]}",
        "0-0.png": f"{CONCEPTS[0]}, {STYLES[0]} style",  # held out
    }
    folder = generated(tmp_path / "out", pairs, asked)
    command = NearestImages(
        images=folder,
        reference=str(pairs),
        extractor=(str(tmp_path / "pooled.pt"),),
        columns=("concept", "style"),
        out=tmp_path / "report",
        device="cpu",
        json=True,
    )
    assert command.run() == 0
    report = json.loads(capsys.readouterr().out)
    table = report["extractors"]["pooled"]
    row = table["rows"]["generated"]
    assert (row["count"], row["known"]) == (3, 3)
    assert row["copies"] == pytest.approx(2 / 3)
    assert row["shares"]["same concept, same style"] == pytest.approx(1 / 3)
    assert row["shares"]["same concept, other style"] >= 1 / 3
    assert "same concept, same style" not in table["rows"]["held-out images"]["shares"]
    with Image.open(table["sheet"]) as sheet:
        assert sheet.size == (3 * 132 + 4, 2 * 132 + 4)

    prompts = tmp_path / "prompts.jsonl"
    line = {"prompt": "my own words", "concept": CONCEPTS[1], "style": STYLES[0]}
    prompts.write_text(json.dumps(line) + "\n")
    shutil.rmtree(folder)
    named = {"1-0.png": "my own words", "2-3.png": f"{CONCEPTS[2]}, {STYLES[3]}"}
    again = NearestImages(
        images=generated(folder, pairs, named),
        reference=str(pairs),
        extractor=command.extractor,
        prompts=prompts,
        classes=("concept", "style"),
        out=command.out,
        device="cpu",
    )
    assert again.run() == 0
    text = capsys.readouterr().out
    assert "same concept, same style" in text
    assert "1.000" in text


def test_an_image_is_not_its_own_neighbour() -> None:
    features_XD = torch.tensor([[1.0, 0], [0.9, 0.1], [-1, 0], [-0.9, -0.3]])
    assert nearest_of(features_XD, features_XD).places_X.tolist() == [0, 1, 2, 3]
    assert nearest_of(features_XD, features_XD, itself=True).places_X.tolist() == [1, 0, 3, 2]
    none_MD = torch.empty(0, 2)
    assert copy_bound(features_XD, none_MD) < 1.0


def test_wrong_references_are_refused(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", concepts=2)
    command = NearestImages(images=pairs, reference=str(pairs), extractor=("scenes",), columns=("mood",))
    with pytest.raises(ValueError, match="have no 'mood' in the metadata"):
        command.run()
