"""Where inpainting and outpainting start: which tokens are generated anew, and what lies around an image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from swiftmask.data.images import open_image
from swiftmask.data.images.inpainting import start_image

SIZE, GRID = (8, 12), (4, 6)


def picture(height: int, width: int) -> Image.Image:
    pixels_HW3 = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels_HW3)


def mask_of(drawn_HW: Tensor) -> Image.Image:
    return Image.fromarray((drawn_HW * 255).numpy().astype(np.uint8))


def test_a_token_is_drawn_anew_if_any_of_its_pixels_is() -> None:
    image, drawn_HW = picture(*SIZE), torch.zeros(SIZE)
    drawn_HW[3, 5] = drawn_HW[7, 11] = 1
    start = start_image(image, mask_of(drawn_HW), size=SIZE, grid=GRID)
    assert start.drawn_L.nonzero().flatten().tolist() == [1 * 6 + 2, 3 * 6 + 5]
    torch.testing.assert_close(
        start.image_3HW * 255, torch.from_numpy(np.array(image)).permute(2, 0, 1) * 1.0
    )


def test_tokens_of_broken_pixels() -> None:
    """12 tokens in 64 pixels: 5.33 each, and a pixel may belong to two of them."""
    drawn_HW = torch.zeros(64, 64)
    drawn_HW[5, 0] = 1
    start = start_image(picture(64, 64), mask_of(drawn_HW), size=(64, 64), grid=(12, 12))
    assert start.drawn_L.nonzero().flatten().tolist() == [0, 12]


@pytest.mark.parametrize(
    ("size", "kept"), [((4, 8), (slice(1, 3), slice(1, 5))), ((3, 7), (slice(1, 2), slice(1, 4)))]
)
def test_around_a_smaller_image_everything_is_drawn(size: tuple[int, int], kept: tuple[slice, slice]) -> None:
    image = picture(*size)
    start = start_image(image, None, size=SIZE, grid=GRID)
    drawn_44 = torch.ones(GRID, dtype=torch.bool)
    drawn_44[kept] = False
    assert torch.equal(start.drawn_L.unflatten(0, GRID), drawn_44)
    pixels_3HW = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.equal(start.image_3HW[:, 2 : 2 + size[0], 2 : 2 + size[1]], pixels_3HW)
    assert torch.equal(start.image_3HW[:, 0, 0], pixels_3HW[:, 0, 0]), "edges are repeated outwards"


@pytest.mark.parametrize(
    ("image", "mask", "complaint"),
    [
        ((9, 12), None, r"the image is 9x12 \(height x width\), larger than the model's, 8x12"),
        ((8, 12), (8, 11), "the mask is 8x11 .* the image 8x12: make them of one size"),
        ((8, 12), None, "nothing is left to generate: give a mask"),
    ],
)
def test_sizes_that_do_not_fit(image: tuple[int, int], mask: tuple[int, int] | None, complaint: str) -> None:
    drawn = None if mask is None else mask_of(torch.ones(mask))
    with pytest.raises(ValueError, match=complaint):
        start_image(picture(*image), drawn, size=SIZE, grid=GRID)


@pytest.mark.parametrize(
    ("colour", "complaint"), [(0, "nothing is left to generate"), (1, "leaves no token")]
)
def test_a_mask_of_one_colour(colour: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        start_image(picture(*SIZE), mask_of(torch.full(SIZE, colour)), size=SIZE, grid=GRID)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such image file"):
        open_image(tmp_path / "nowhere.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot read image .*broken.png"):
        open_image(tmp_path / "broken.png")


HALF_HW = np.zeros(SIZE)
HALF_HW[:, 8:] = 1


def _palette(colours: list[int]) -> Image.Image:
    mask = Image.frombytes("P", (SIZE[1], SIZE[0]), HALF_HW.astype(np.uint8).tobytes())
    mask.putpalette(colours)
    return mask


def _merged(mode: str, *channels: np.ndarray) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(channel.astype(np.uint8)) for channel in channels])


MASKS = {
    "0 and 1": Image.fromarray(HALF_HW.astype(np.uint8)),
    "0 and 255": Image.fromarray((HALF_HW * 255).astype(np.uint8)),
    "100 and 200": Image.fromarray((100 + HALF_HW * 100).astype(np.uint8)),
    "bool": Image.fromarray(HALF_HW.astype(bool)),
    "16 bits": Image.fromarray((HALF_HW * 65535).astype(np.uint16)),
    "16 bits, 0 and 1": Image.fromarray(HALF_HW.astype(np.uint16)),
    "32 bits": Image.fromarray((HALF_HW * 255).astype(np.int32)),
    "real": Image.fromarray(HALF_HW.astype(np.float32)),
    "real, 0 and 255": Image.fromarray((HALF_HW * 255).astype(np.float32)),
    "colours": Image.fromarray(np.stack([HALF_HW, HALF_HW * 0, HALF_HW * 0], -1).astype(np.uint8) * 255),
    "RGB of 0 and 1": Image.fromarray(np.stack([HALF_HW] * 3, -1).astype(np.uint8)),
    "palette": _palette([0, 0, 0, 128, 0, 0]),
    "palette of 0 and 1": _palette([0, 0, 0, 1, 1, 1]),
    "transparent black": _merged("LA", HALF_HW * 255, HALF_HW * 255),
    "white where transparent": _merged("LA", HALF_HW * 0 + 255, HALF_HW * 255),
    "opaque": _merged("RGBA", *[HALF_HW * 255] * 3, HALF_HW * 0 + 255),
    "grey": Image.fromarray((HALF_HW * 155 + np.arange(12) * 5).astype(np.uint8)),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_read_as_meant(name: str) -> None:
    start = start_image(picture(*SIZE), MASKS[name], size=SIZE, grid=GRID)
    assert start.drawn_L.unflatten(0, GRID).float().mean(dim=0).tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ((0, 0), r"nothing is left to generate \(the values of the mask go from 0 to 0\)"),
        ((1, 1), r"leaves no token of the image as it is \(the values of the mask go from 1 to 1\)"),
        ((255, 255), r"leaves no token .* from 255 to 255"),
        ((0, 3), "the values of the mask go from 0 to 3, of 255: expected black"),
        ((252, 255), "the values of the mask go from 252 to 255, of 255: expected black"),
    ],
)
def test_masks_that_say_nothing_are_refused_with_their_range(values: tuple[int, int], complaint: str) -> None:
    mask_HW = np.linspace(*values, SIZE[0] * SIZE[1]).astype(np.uint8).reshape(SIZE)
    with pytest.raises(ValueError, match=complaint):
        start_image(picture(*SIZE), Image.fromarray(mask_HW), size=SIZE, grid=GRID)
    with pytest.raises(ValueError, match="from 0 to 0, transparent counting as 0"):
        clear = _merged("LA", HALF_HW * 0, HALF_HW * 255)
        start_image(picture(*SIZE), clear, size=SIZE, grid=GRID)


def test_the_image_may_be_of_any_mode() -> None:
    image = Image.fromarray(np.arange(96, dtype=np.uint16).reshape(SIZE) * 257)
    start = start_image(image, MASKS["bool"], size=SIZE, grid=GRID)
    expected_HW = torch.arange(96).reshape(SIZE) / 255
    torch.testing.assert_close(start.image_3HW, expected_HW.expand(3, *SIZE))
