"""Where inpainting and outpainting start: which tokens are drawn anew, and what lies around an image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from swiftmask.data.images import open_picture
from swiftmask.data.images.inpainting import start_picture

SIZE, GRID = (8, 12), (4, 6)


def picture(height: int, width: int) -> Image.Image:
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels_HW3)


def mask_of(drawn_HW: Tensor) -> Image.Image:
    return Image.fromarray((drawn_HW * 255).numpy().astype(np.uint8))


def test_a_token_is_drawn_anew_if_any_of_its_pixels_is() -> None:
    image, drawn_HW = picture(*SIZE), torch.zeros(SIZE)
    drawn_HW[3, 5] = drawn_HW[7, 11] = 1
    start = start_picture(image, mask_of(drawn_HW), size=SIZE, grid=GRID)
    assert start.drawn_L.nonzero().flatten().tolist() == [1 * 6 + 2, 3 * 6 + 5]
    torch.testing.assert_close(
        start.image_3HW * 255, torch.from_numpy(np.array(image)).permute(2, 0, 1) * 1.0
    )


def test_tokens_of_broken_pixels() -> None:
    """12 tokens in 64 pixels: 5.33 each, and a pixel may belong to two of them."""
    drawn_HW = torch.zeros(64, 64)
    drawn_HW[5, 0] = 1
    start = start_picture(picture(64, 64), mask_of(drawn_HW), size=(64, 64), grid=(12, 12))
    assert start.drawn_L.nonzero().flatten().tolist() == [0, 12]


@pytest.mark.parametrize(
    ("size", "kept"), [((4, 8), (slice(1, 3), slice(1, 5))), ((3, 7), (slice(1, 2), slice(1, 4)))]
)
def test_around_a_smaller_image_everything_is_drawn(size: tuple[int, int], kept: tuple[slice, slice]) -> None:
    image = picture(*size)
    start = start_picture(image, None, size=SIZE, grid=GRID)
    drawn_44 = torch.ones(GRID, dtype=torch.bool)
    drawn_44[kept] = False
    assert torch.equal(start.drawn_L.unflatten(0, GRID), drawn_44)
    pixels_3HW = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.equal(start.image_3HW[:, 2 : 2 + size[0], 2 : 2 + size[1]], pixels_3HW)
    assert torch.equal(start.image_3HW[:, 0, 0], pixels_3HW[:, 0, 0]), "edges are repeated outwards"


@pytest.mark.parametrize(
    ("image", "mask", "complaint"),
    [
        ((9, 12), None, r"the image is 9x12 \(height x width\), larger than the picture of 8x12"),
        ((8, 12), (8, 11), "the mask is 8x11 .* the image 8x12: make them of one size"),
        ((8, 12), None, "nothing is left to draw: give a mask"),
    ],
)
def test_sizes_that_do_not_fit(image: tuple[int, int], mask: tuple[int, int] | None, complaint: str) -> None:
    drawn = None if mask is None else mask_of(torch.ones(mask))
    with pytest.raises(ValueError, match=complaint):
        start_picture(picture(*image), drawn, size=SIZE, grid=GRID)


@pytest.mark.parametrize(("colour", "complaint"), [(0, "nothing is left to draw"), (1, "leaves no token")])
def test_a_mask_of_one_colour(colour: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        start_picture(picture(*SIZE), mask_of(torch.full(SIZE, colour)), size=SIZE, grid=GRID)


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such image file"):
        open_picture(tmp_path / "nowhere.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot read image .*broken.png"):
        open_picture(tmp_path / "broken.png")
