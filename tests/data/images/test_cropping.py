"""Images of training: the crop, and what is wrong with a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from swiftmask.data.images import centre_crop
from swiftmask.data.sources.folder import FolderSource

BOX, BICUBIC = Image.Resampling.BOX, Image.Resampling.BICUBIC


def noise(width: int, height: int, *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


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


def test_images_are_cropped_colours(tmp_path: Path) -> None:
    for mode, name in (("RGB", "a"), ("L", "b"), ("RGBA", "c"), ("P", "d")):
        save(noise(21, 16, mode=mode), tmp_path / f"{name}.png")
    source = FolderSource(tmp_path)
    images_B3HW = torch.stack([source.read(i, 16) for i in (3, 0, 1)])
    assert images_B3HW.shape == (3, 3, 16, 16)
    assert images_B3HW.dtype == torch.uint8
    expected = torch.from_numpy(np.array(noise(21, 16).crop((2, 0, 18, 16)))).permute(2, 0, 1)
    assert torch.equal(images_B3HW[1], expected)
    assert torch.equal(images_B3HW[2, 0], images_B3HW[2, 2])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_damaged_images_are_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = save(noise(64, 64), tmp_path / f"a/x.{suffix}")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=rf"cannot read image .*a/x\.{suffix} \(.+\)") as error:
        FolderSource(tmp_path).read(0, 8)
    assert "\n" not in str(error.value)
