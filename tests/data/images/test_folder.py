"""Image folders: which files have which labels, the crop, and what is wrong with a file or folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swiftmask.data.images import ImageFolder, centre_crop

BOX, BICUBIC = Image.Resampling.BOX, Image.Resampling.BICUBIC


def noise(width: int, height: int, *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def test_labels_are_the_places_of_the_sorted_class_folders(tmp_path: Path) -> None:
    """Sorted by name as text, whatever the order on disk; other files and hidden ones do not count."""
    for name in ("n10/b.JPEG", "n10/a.png", "n2/deep/er/x.webp", "n2/z.jpg", "A/1.bmp", "n2/.hidden.png"):
        save(noise(9, 9), tmp_path / name)
    save(noise(9, 9), tmp_path / ".cache/q.png")
    (tmp_path / "n2/notes.txt").write_text("no image")
    (tmp_path / "LICENSE").write_text("no class")
    folder = ImageFolder.open(tmp_path, 8)
    assert folder.class_names == ("A", "n10", "n2")
    assert folder.files == ("A/1.bmp", "n10/a.png", "n10/b.JPEG", "n2/deep/er/x.webp", "n2/z.jpg")
    assert folder.labels_X.tolist() == [0, 1, 1, 2, 2]
    assert len(folder) == 5


@pytest.mark.parametrize(
    ("shape", "halved", "resized", "corner"),
    [
        ((1031, 301), [(515, 150), (257, 75), (128, 37)], (111, 32), (39, 0)),
        ((90, 127), [(45, 63)], (32, 45), (0, 6)),
        ((64, 64), [(32, 32)], (32, 32), (0, 0)),
        ((63, 100), [], (32, 51), (0, 9)),
        ((20, 25), [], (32, 40), (0, 4)),
    ],
)
def test_the_crop_is_adms(
    shape: tuple[int, int],
    halved: list[tuple[int, int]],
    resized: tuple[int, int],
    corner: tuple[int, int],
) -> None:
    """Sizes worked out by hand: halving rounds down, the bicubic step to the nearest, the corner down."""
    image = expected = noise(*shape)
    for size in halved:
        expected = expected.resize(size, BOX)
    left, top = corner
    expected = expected.resize(resized, BICUBIC).crop((left, top, left + 32, top + 32))
    assert np.array_equal(np.asarray(centre_crop(image, 32)), np.asarray(expected))


def test_pictures_are_cropped_colours_in_unit_range(tmp_path: Path) -> None:
    for mode, name in (("RGB", "a"), ("L", "b"), ("RGBA", "c"), ("P", "d")):
        save(noise(21, 16, mode=mode), tmp_path / f"x/{name}.png")
    images_B3HW = ImageFolder.open(tmp_path, 16).images([3, 0, 1])
    assert images_B3HW.shape == (3, 3, 16, 16)
    assert images_B3HW.dtype == torch.float32
    assert images_B3HW.min() >= 0 and 0.9 < images_B3HW.max() <= 1
    expected = torch.from_numpy(np.array(noise(21, 16).crop((2, 0, 18, 16)))).permute(2, 0, 1) / 255
    assert torch.equal(images_B3HW[1], expected)
    assert torch.equal(images_B3HW[2, 0], images_B3HW[2, 2])


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such image folder: .*absent"):
        ImageFolder.open(tmp_path / "absent", 8)
    save(noise(9, 9), tmp_path / "loose.png")
    with pytest.raises(ValueError, match="has no class folders: expected .*/CLASS/IMAGE"):
        ImageFolder.open(tmp_path, 8)
    save(noise(9, 9), tmp_path / "full/a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*empty has no images .*: fill or remove it"):
        ImageFolder.open(tmp_path, 8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_damaged_images_are_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = save(noise(64, 64), tmp_path / f"a/x.{suffix}")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"cannot read image a/x\.{suffix} \(.+\)") as error:
        ImageFolder.open(tmp_path, 8).images([0])
    assert "\n" not in str(error.value)
