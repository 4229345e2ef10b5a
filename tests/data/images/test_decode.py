"""Every mode Pillow knows, in every file that holds it, against colours worked out by hand."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from swiftmask.data.images.decode import Decoding, counted, decode_image, open_image, said, to_rgb

RAMP_HW = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS_HW3 = np.stack([RAMP_HW, RAMP_HW[::-1], RAMP_HW.T], axis=-1)
ALPHA_HW = np.rot90(RAMP_HW)
GREY_HW3 = np.repeat(RAMP_HW[..., None], 3, axis=-1)


def on(colour: int, pixels_HW3: np.ndarray, alpha_HW: np.ndarray = ALPHA_HW) -> np.ndarray:
    """Pixels placed on a grey, in real numbers."""
    share_HW1 = alpha_HW[..., None] / 255
    return pixels_HW3 * share_HW1 + colour * (1 - share_HW1)


def image(*channels: np.ndarray, mode: str) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(np.ascontiguousarray(channel)) for channel in channels])


def raw(values_HW: np.ndarray, mode: str, kind: str) -> Image.Image:
    return Image.frombytes(mode, (16, 16), values_HW.astype(kind).tobytes())


def paletted(alpha: bool) -> Image.Image:
    picture = Image.frombytes("P", (16, 16), RAMP_HW.tobytes())
    picture.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
    return picture.convert("PA") if alpha else picture


PALETTE_HW3 = np.stack([RAMP_HW, 255 - RAMP_HW, RAMP_HW // 2], axis=-1)
HALF_HW = (RAMP_HW > 127).astype(np.uint8)
WIDE_HW = RAMP_HW.astype(np.int64) * 257

MODES: dict[str, tuple[Callable[[], Image.Image], np.ndarray, float, tuple[str, ...]]] = {
    "1": (lambda: Image.fromarray(HALF_HW * 255).convert("1"), np.stack([HALF_HW * 255] * 3, -1), 0, ()),
    "L": (lambda: Image.fromarray(RAMP_HW), GREY_HW3, 0, ()),
    "LA": (lambda: image(RAMP_HW, ALPHA_HW, mode="LA"), on(255, GREY_HW3), 1, ("transparency",)),
    "La": (
        lambda: image(RAMP_HW, ALPHA_HW, mode="LA").convert("La"),
        on(255, GREY_HW3),
        2,
        ("transparency",),
    ),
    "P": (lambda: paletted(False), PALETTE_HW3, 0, ()),
    "PA": (lambda: paletted(True), PALETTE_HW3, 0, ()),
    "RGB": (lambda: Image.fromarray(COLOURS_HW3), COLOURS_HW3, 0, ()),
    "RGBX": (lambda: Image.fromarray(COLOURS_HW3).convert("RGBX"), COLOURS_HW3, 0, ()),
    "RGBA": (
        lambda: Image.fromarray(np.dstack([COLOURS_HW3, ALPHA_HW])),
        on(255, COLOURS_HW3),
        1,
        ("transparency",),
    ),
    "RGBa": (
        lambda: Image.fromarray(np.dstack([COLOURS_HW3, ALPHA_HW])).convert("RGBa"),
        on(255, COLOURS_HW3),
        2,
        ("transparency",),
    ),
    "RGBA, opaque": (lambda: Image.fromarray(COLOURS_HW3).convert("RGBA"), COLOURS_HW3, 0, ()),
    "CMYK": (lambda: Image.fromarray(COLOURS_HW3).convert("CMYK"), COLOURS_HW3, 0, ("colours",)),
    "YCbCr": (lambda: Image.fromarray(COLOURS_HW3).convert("YCbCr"), COLOURS_HW3, 4, ("colours",)),
    "HSV": (lambda: Image.fromarray(COLOURS_HW3).convert("HSV"), COLOURS_HW3, 5, ("colours",)),
    "LAB": (lambda: Image.fromarray(GREY_HW3).convert("LAB"), GREY_HW3, 3, ("colours", "profile")),
    "I;16": (lambda: raw(WIDE_HW, "I;16", "<u2"), GREY_HW3, 0, ("depth",)),
    "I;16L": (lambda: raw(WIDE_HW, "I;16L", "<u2"), GREY_HW3, 0, ("depth",)),
    "I;16B": (lambda: raw(WIDE_HW, "I;16B", ">u2"), GREY_HW3, 0, ("depth",)),
    "I of 16 bits": (lambda: raw(WIDE_HW, "I", "<i4"), GREY_HW3, 0, ("depth",)),
    "I of 8 bits": (lambda: raw(RAMP_HW, "I", "<i4"), GREY_HW3, 0, ("depth",)),
    "F to 1": (lambda: raw(RAMP_HW / 255, "F", "<f4"), GREY_HW3, 0, ("depth",)),
    "F to 255": (lambda: raw(RAMP_HW * 1.0, "F", "<f4"), GREY_HW3, 0, ("depth",)),
}
"""By name: how to make the image, its colours on white, by how much they may be off, what was done."""

FILES = ("PNG", "TIFF", "WEBP", "BMP", "GIF", "JPEG2000", "TGA", "ICO", "PPM", "AVIF")


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(np.float64)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", MODES)
def test_every_mode(name: str) -> None:
    make, expected_HW3, off, changes = MODES[name]
    found = to_rgb(make())
    assert found.image.mode == "RGB"
    assert np.abs(pixels(found.image) - expected_HW3).max() <= off
    assert found.changes == changes


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("name", MODES)
def test_every_mode_in_a_file_without_loss(name: str, kind: str) -> None:
    make, expected_HW3, off, changes = MODES[name]
    try:
        content = encoded(make(), kind)
    except OSError:
        pytest.skip(f"{kind} cannot hold {name}")
    found = decode_image(content, "x")
    assert np.abs(pixels(found.image) - expected_HW3).max() <= off
    assert found.changes == changes


@pytest.mark.parametrize("kind", FILES)
def test_formats(kind: str) -> None:
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    content = encoded(Image.fromarray(GREY_HW3), kind, **lossless.get(kind, {}))
    found = decode_image(content, "x")
    assert np.abs(pixels(found.image) - GREY_HW3).max() <= (2 if kind == "AVIF" else 0)


def test_colours_of_16_bits_and_their_transparent_colour() -> None:
    """Pillow cannot write them: an RGB PNG of 16 bits by hand, with tRNS."""
    import zlib

    wide = np.repeat(COLOURS_HW3.astype(">u2") * 257, 1, axis=0)
    rows = b"".join(b"\0" + row.tobytes() for row in wide)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0))
    clear = chunk(b"tRNS", wide[3, 5].tobytes())
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    plain = decode_image(b"\x89PNG\r\n\x1a\n" + header + body, "x")
    assert np.array_equal(pixels(plain.image), COLOURS_HW3)
    assert plain.changes == ("depth",)
    found = decode_image(b"\x89PNG\r\n\x1a\n" + header + clear + body, "x")
    expected_HW3 = COLOURS_HW3.copy()
    expected_HW3[3, 5] = 255
    assert np.array_equal(pixels(found.image), expected_HW3)


def test_a_tiff_of_12_bits() -> None:
    """Two pixels in three bytes: 0xFFF and 0x800."""
    entries = [(256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 3, 1), (279, 4, 3)]
    fields = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    content = b"II*\0" + struct.pack("<I", 12) + b"\xff\xf8\x00\0"
    content += struct.pack("<H", len(entries)) + fields + struct.pack("<I", 0)
    found = decode_image(content, "x")
    assert pixels(found.image)[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize(
    ("mode", "values"),
    [("F", (0, 2**16)), ("F", (-0.5, 1)), ("F", (0, np.nan)), ("I", (0, 70000)), ("I", (-1, 5))],
)
def test_numbers_of_unknown_scale_are_refused(mode: str, values: tuple[float, float]) -> None:
    array = np.array([values], np.float32 if mode == "F" else np.int32)
    content = encoded(Image.fromarray(array), "TIFF")
    with pytest.raises(
        ValueError, match=r"cannot read image deep\.tiff \(.* values from .* to .*expected 0 to"
    ):
        decode_image(content, "deep.tiff")


def test_transparency_shows_the_background_not_the_colour_under_it() -> None:
    clear = Image.fromarray(np.full((2, 2, 4), (200, 10, 10, 0), np.uint8))
    assert pixels(to_rgb(clear).image).min() == 255
    blue = to_rgb(clear, Decoding(background="#0000ff")).image
    assert pixels(blue)[0, 0].tolist() == [0, 0, 255]
    with pytest.raises(ValueError, match="background 'wite' is no colour: expected a name"):
        Decoding(background="wite")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_a_transparent_palette_colour_or_grey(kind: str) -> None:
    picture = Image.fromarray(HALF_HW).convert("P")
    picture.putpalette([255, 0, 0, 0, 128, 0])
    if kind != "TIFF":
        found = decode_image(encoded(picture, kind, transparency=0), "x")
        assert pixels(found.image)[0, 0].tolist() == [255, 255, 255]
        assert pixels(found.image)[15, 15].tolist() == [0, 128, 0]
    if kind == "PNG":
        for grey, clear in ((Image.fromarray(RAMP_HW), 3), (raw(WIDE_HW, "I;16", "<u2"), 3 * 257)):
            found = decode_image(encoded(grey, kind, transparency=clear), "x")
            expected_HW3 = GREY_HW3.copy()
            expected_HW3[RAMP_HW == 3] = 255
            assert np.array_equal(pixels(found.image), expected_HW3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns(kind: str, orientation: int) -> None:
    """The file holds the image so that a viewer turns it into `upright`: corners red and dark."""
    upright_HW3 = np.zeros((8, 24, 3), np.uint8)
    upright_HW3[:, :8], upright_HW3[:4, :8] = (250, 250, 250), (120, 120, 120)
    stored_HW3 = {
        1: upright_HW3,
        2: upright_HW3[:, ::-1],
        3: upright_HW3[::-1, ::-1],
        4: upright_HW3[::-1],
        5: upright_HW3.transpose(1, 0, 2),
        6: np.rot90(upright_HW3, 1),
        7: np.rot90(upright_HW3, 2).transpose(1, 0, 2),
        8: np.rot90(upright_HW3, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored_HW3)), kind, exif=exif)
    found = decode_image(content, "x")
    assert found.image.size == (24, 8)
    assert np.abs(pixels(found.image) - upright_HW3).max() < 25
    if kind != "TIFF":  # Pillow turns it while loading
        assert found.changes == (("orientation",) if orientation > 1 else ())
        as_stored = decode_image(content, "x", Decoding(orientation=False))
        assert np.abs(pixels(as_stored.image) - stored_HW3).max() < 25
        assert as_stored.changes == (("unturned",) if orientation > 1 else ())


def profile(gamma: float, *, grey: bool = False) -> bytes:
    """An ICC profile with sRGB's primaries (or grey) and another gamma."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(made[i : i + 4]): made[i + 4 : i + 12] for i in range(132, 132 + 12 * made[131], 12)}
    curve = struct.pack(">4sIIH", b"curv", 0, 1, round(gamma * 256)) + b"\0\0"
    at = struct.unpack(">II", tags[b"rTRC"])[0]
    made[at : at + len(curve)] = curve
    for i in range(132, 132 + 12 * made[131], 12):
        if made[i : i + 4] in (b"rTRC", b"gTRC", b"bTRC"):
            made[i + 4 : i + 12] = struct.pack(">II", at, len(curve))
    if grey:
        made[16:20] = b"GRAY"
        for i in range(132, 132 + 12 * made[131], 12):
            if made[i : i + 4] == b"rTRC":
                made[i : i + 4] = b"kTRC"
    return bytes(made)


def linear_to_srgb(value: np.ndarray) -> np.ndarray:
    return np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "L of an RGB profile", "I;16"])
def test_profiles_are_converted_to_srgb(mode: str) -> None:
    """Linear light, so that the right value is known."""
    grey = mode in ("L", "I;16")
    own = Image.fromarray(GREY_HW3).convert("RGBA" if mode == "RGBA" else "RGB")
    if mode == "I;16":
        own = raw(WIDE_HW, "I;16", "<u2")
    elif mode[0] in "LP":
        own = Image.fromarray(RAMP_HW).convert(mode[0])
    content = encoded(own, icc_profile=profile(1.0, grey=grey))
    found = decode_image(content, "x")
    expected_HW = 255 * linear_to_srgb(RAMP_HW / 255)
    assert np.abs(pixels(found.image)[..., 0] - expected_HW).max() <= 1.5
    assert "profile" in found.changes
    assert not to_rgb(found.image).changes, "nothing is converted twice"


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_profile_that_is_srgb_changes_nothing(mode: str) -> None:
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encoded(Image.fromarray(COLOURS_HW3).convert(mode), icc_profile=same)
    found = decode_image(content, "x")
    assert found.changes == ()
    assert np.array_equal(
        pixels(found.image), pixels(Image.fromarray(COLOURS_HW3).convert(mode).convert("RGB"))
    )


@pytest.mark.parametrize("content", [b"no profile", profile(1.0, grey=True), profile(1.0)[:200]])
def test_a_profile_that_does_not_fit_is_said(content: bytes) -> None:
    found = decode_image(encoded(Image.fromarray(COLOURS_HW3), icc_profile=content), "x")
    assert found.changes == ("no profile",)
    assert np.array_equal(pixels(found.image), COLOURS_HW3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("black", "white", "white")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    found = decode_image(content, "x")
    assert found.changes == ("frames",)
    assert pixels(found.image).max() == 0


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6])
def test_damaged_files_are_named_on_one_line(kind: str, share: float) -> None:
    noise_HW3 = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = encoded(Image.fromarray(noise_HW3), kind)
    with pytest.raises(ValueError, match=r"^cannot read image a/b\.x \(.+\)$") as error:
        decode_image(content[: int(share * len(content))], "a/b.x")
    assert "\n" not in str(error.value)


def test_bombs_are_refused_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("1", (3000, 3000)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4 * 10**6)
    with pytest.raises(
        ValueError, match=r"cannot read image b\.png \(more than 8 million pixels\): scale it"
    ):
        decode_image(content, "b.png")


def test_what_was_done_is_counted_and_said() -> None:
    counts = counted([("transparency",), (), ("transparency", "depth")])
    assert counts == {"transparency": 2, "depth": 1}
    assert said(counts, 500, Decoding(background="grey")) == [
        "2 of 500 images had transparency: placed on grey",
        "1 of 500 images had more than 8 bits a channel: scaled to 8",
    ]
    identities = {
        x.identity for x in (Decoding(), Decoding(orientation=False), Decoding(background="#fffffe"))
    }
    assert len(identities) == 3
    assert Decoding(background="#ffffff").identity == Decoding().identity


def test_files_that_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such image file"):
        open_image(tmp_path)
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cannot read image .*x\.png"):
        open_image(tmp_path / "x.png")


@pytest.mark.parametrize(("bits", "scale"), [(2, 85), (4, 17)])
def test_the_transparent_grey_of_few_bits(bits: int, scale: int) -> None:
    """Pillow scales the greys of the image, but not the transparent one."""
    levels_HW = np.arange(16).reshape(4, 4) % 2**bits
    rows = [
        b"\0" + np.packbits((row[:, None] >> np.arange(bits)[::-1]) & 1).tobytes()
        for row in levels_HW.astype(np.uint8)
    ]
    clear = png_chunk(b"tRNS", struct.pack(">H", 2))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, bits, 0, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(b"".join(rows))) + png_chunk(b"IEND", b"")
    found = decode_image(b"\x89PNG\r\n\x1a\n" + header + clear + body, "x")
    expected_HW = np.where(levels_HW == 2, 255, levels_HW * scale)
    assert np.array_equal(pixels(found.image)[..., 0], expected_HW)
    assert found.changes == ("transparency",)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_ppm_of_16_bits_is_counted() -> None:
    wide_HW3 = (np.arange(48).reshape(4, 4, 3) * 1285).astype(">u2")
    found = decode_image(b"P6 4 4 65535\n" + wide_HW3.tobytes(), "x.ppm")
    assert np.array_equal(pixels(found.image), wide_HW3 >> 8)
    assert found.changes == ("depth",)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"<svg/>", "no image of a format that is read"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "Git-LFS pointer.*git lfs pull",
        ),
    ],
)
def test_what_is_no_image_is_called_what_it_is(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^cannot read image x\.png \(.*{why}"):
        decode_image(content, "x.png")
