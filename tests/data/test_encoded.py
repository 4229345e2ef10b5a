"""The cache of encoded images: one encoding per item and content, whatever else changes or is killed."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from swiftmask.data import encoded
from swiftmask.data.encoded import EncodedImages, Share, encoded_images
from swiftmask.data.sources import DataConfig, open_source

SIZE = 8


class Encoder:
    """The mean colour and the left edge of an image; counts what it encodes."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, images_B3HW: Tensor) -> Tensor:
        assert images_B3HW.dtype == torch.float32 and 0 <= images_B3HW.min() <= images_B3HW.max() <= 1
        self.count += len(images_B3HW)
        return torch.stack([images_B3HW.mean((2, 3)), images_B3HW[..., 0].mean(2)], dim=1).half()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five images, dark on the left."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        draw(folder / f"{i}.png", 50 * i)
    return folder


def draw(path: Path, level: int) -> None:
    image = Image.new("RGB", (SIZE, SIZE), (level, level, 255))
    image.paste((0, 0, 0), (0, 0, 2, SIZE))
    image.save(path)


def encode(images: Path, network: Encoder, **changes: object) -> EncodedImages:
    source = open_source(str(images), DataConfig())
    settings: dict = {"encoder": "toy", "batch_size": 2} | changes
    return encoded_images(source, SIZE, network, images.parent / "cache", **settings)


def test_rows_are_those_of_the_items_in_their_order(images: Path) -> None:
    rows = encode(images, Encoder())
    assert rows.items.tolist() == [0, 1, 2, 3, 4]
    found = rows.rows(torch.tensor([3, 0, 3]))
    assert found.shape == (3, 2, 3)
    assert found[:, 0, 0].tolist() == pytest.approx([150 / 255 * 0.75, 0, 150 / 255 * 0.75], abs=1e-3)


def test_mirror_images_have_rows_of_their_own(images: Path) -> None:
    encoder = Encoder()
    rows = encode(images, encoder, mirrored=True)
    assert encoder.count == 10
    plain, mirrored = rows.rows(torch.tensor([4, 4]), mirrored_B=torch.tensor([False, True]))
    assert torch.equal(plain[0], mirrored[0])
    assert plain[1].tolist() == [0, 0, 0]
    assert mirrored[1, 2] == 1


def test_an_added_image_encodes_only_itself_and_moves_no_row(images: Path) -> None:
    before = encode(images, Encoder()).rows(torch.arange(5))
    draw(images / "1b.png", 200)
    encoder = Encoder()
    after = encode(images, encoder)
    assert encoder.count == 1
    assert torch.equal(after.rows(torch.tensor([0, 1, 3, 4, 5])), before)
    (images / "0.png").unlink()
    encoder = Encoder()
    assert torch.equal(encode(images, encoder).rows(torch.tensor([0, 2, 3, 4])), before[1:])
    assert encoder.count == 0


def test_a_changed_image_is_encoded_again(images: Path) -> None:
    encode(images, Encoder())
    draw(images / "2.png", 255)
    encoder = Encoder()
    rows = encode(images, encoder)
    assert encoder.count == 1
    assert float(rows.rows(torch.tensor([2]))[0, 0, 0]) == pytest.approx(0.75, abs=1e-3)


def test_another_encoder_has_rows_of_its_own(images: Path) -> None:
    for changes, expected in (({}, 5), ({"encoder": "other"}, 5), ({"mirrored": True}, 10), ({}, 0)):
        encoder = Encoder()
        encode(images, encoder, **changes)
        assert encoder.count == expected


def test_a_killed_run_goes_on_at_the_last_whole_file(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "SHARD", 2)

    class Killed(Encoder):
        def __call__(self, images_B3HW: Tensor) -> Tensor:
            if self.count == 4:
                raise KeyboardInterrupt
            return super().__call__(images_B3HW)

    with pytest.raises(KeyboardInterrupt):
        encode(images, Killed())
    encoder, seen = Encoder(), []
    rows = encode(images, encoder, on_progress=lambda done, total: seen.append((done, total)))
    assert encoder.count == 1
    assert seen == [(4, 5), (5, 5)]
    assert rows.rows(torch.arange(5))[:, 0, 2].tolist() == pytest.approx([0.75] * 5, abs=1e-3)


def test_several_shares_give_the_same_rows(images: Path, tmp_path: Path) -> None:
    """Two threads stand for two processes."""
    alone = encode(images, Encoder()).rows(torch.arange(5))
    barrier, found = threading.Barrier(2, timeout=30), {}
    encoders = [Encoder(), Encoder()]
    source = open_source(str(images), DataConfig())

    def work(rank: int) -> None:
        share = Share(rank=rank, count=2, wait=lambda: barrier.wait() and None)
        rows = encoded_images(
            source, SIZE, encoders[rank], tmp_path / "shared", encoder="toy", share=share, batch_size=2
        )
        found[rank] = rows.rows(torch.arange(5))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(encoder.count for encoder in encoders) == [2, 3]
    assert torch.equal(found[0], alone)
    assert torch.equal(found[1], alone)


def test_a_damaged_image_is_named_and_left_out_only_if_that_is_asked_for(images: Path) -> None:
    whole = (images / "3.png").read_bytes()
    (images / "3.png").write_bytes(whole[:60])
    with pytest.raises(ValueError, match=r"3\.png.*: repair or remove it, .*\(max_unreadable=1\)"):
        encode(images, Encoder())
    rows = encode(images, Encoder(), max_unreadable=1)
    assert rows.items.tolist() == [0, 1, 2, 4]
    (images / "3.png").write_bytes(whole)
    encoder = Encoder()
    assert encode(images, encoder).items.tolist() == [0, 1, 2, 3, 4]
    assert encoder.count == 1


def test_damaged_images_are_counted_over_all_files(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "SHARD", 1)
    for i in (1, 2):
        (images / f"{i}.png").write_text("no image")
    with pytest.raises(ValueError, match=r"max_unreadable=2"):
        encode(images, Encoder(), max_unreadable=1)
    assert encode(images, Encoder(), max_unreadable=2).items.tolist() == [0, 3, 4]
    for i in (0, 3, 4):
        (images / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="none of 2 images of images could be read"):
        encode(images, Encoder(), max_unreadable=2)


def test_an_encoder_that_breaks_down_is_refused(images: Path) -> None:
    class Broken(Encoder):
        def __call__(self, images_B3HW: Tensor) -> Tensor:
            return super().__call__(images_B3HW) / 0

    with pytest.raises(ValueError, match="gives NaN or infinite values for images of images"):
        encode(images, Broken())
    assert encode(images, Encoder()).items.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-9], lambda content: b"", lambda content: content[:-9] + b"\1" + content[-8:]],
)
def test_a_damaged_file_is_named(images: Path, damage: Callable[[bytes], bytes]) -> None:
    encode(images, Encoder())
    (path,) = (images.parent / "cache").rglob("*.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path.name} is damaged .*: delete it, and the next run makes it"):
        encode(images, Encoder())
    path.unlink()
    encoder = Encoder()
    encode(images, encoder)
    assert encoder.count == 5


def test_what_a_killed_run_left_is_removed(images: Path) -> None:
    encode(images, Encoder())
    (folder,) = (images.parent / "cache").iterdir()
    left = folder / ".rows-00000000.safetensors.4711.partial"
    left.write_bytes(b"half")
    encode(images, Encoder())
    assert not left.exists()
