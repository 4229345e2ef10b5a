"""A cache of encoded pictures: found again by what made it, and by nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from swiftmask.data.scenes import World
from swiftmask.recipes.captioned_scenes import CaptionedCodes
from swiftmask.recipes.picture_cache import cached

_WORLD = World()


class Maker:
    """Makes a row of each picture's number, and counts how many it made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, first: int, count: int) -> dict[str, Tensor]:
        self.made += count
        return {"rows": torch.arange(first, first + count)}


def test_a_cache_is_read_again_and_never_for_another_number_or_maker(tmp_path: Path) -> None:
    for num, made_by, expected in (
        (300, "a", 300),
        (300, "a", 0),
        (200, "a", 200),
        (200, "b", 200),
        (300, "a", 0),
    ):
        make = Maker()
        rows_X = cached(tmp_path, num, make, made_by=(made_by,))["rows"]
        assert torch.equal(rows_X, torch.arange(num))
        assert make.made == expected


def test_pictures_are_in_files_of_ten_thousand(tmp_path: Path) -> None:
    assert torch.equal(cached(tmp_path, 20_001, Maker(), made_by=())["rows"], torch.arange(20_001))
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    next(iter(sorted(tmp_path.glob("*.safetensors")))).unlink()
    make = Maker()
    cached(tmp_path, 20_001, make, made_by=())
    assert make.made == 10_000


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    cached(tmp_path, 50, Maker(), made_by=())
    (path,) = tmp_path.glob("*.safetensors")
    content = path.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    path.write_bytes({"truncated": content[:-9], "empty": b"", "flipped": flipped}[damage])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .*: delete it, and the next run makes it"):
        cached(tmp_path, 50, Maker(), made_by=())


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".pictures_0000000_50-00000000.safetensors.4711.partial"
    left.write_bytes(b"half")
    cached(tmp_path, 50, Maker(), made_by=())
    assert not left.exists()


def test_captioned_pictures_know_codec_tokenizer_and_world(tmp_path: Path) -> None:
    def codes(folder: str, *, world: World = _WORLD, codec: str = "a", shift: int = 0) -> int:
        CaptionedCodes.cached(
            tmp_path / folder,
            world,
            4,
            16,
            encode=lambda images_B3HW: torch.zeros(len(images_B3HW), 2, 2, dtype=torch.int64),
            tokenize=lambda texts: torch.tensor([[len(text) + shift] for text in texts]),
            codec=codec,
        )
        return len(list((tmp_path / folder).glob("*.safetensors")))

    assert codes("one") == 1
    assert codes("one") == 1
    assert codes("one", codec="b") == 2
    assert codes("one", shift=1) == 3
    assert codes("one", world=replace(_WORLD, single_percent=40)) == 4
