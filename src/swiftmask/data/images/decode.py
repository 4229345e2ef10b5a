"""Image files to 8-bit RGB: the one place where images enter, whatever they are read for.

Training, `compare`, start images and the reward server read images here; docs/inputs.md states the rules.
A profile that changes no colour by more than 2 of 255 is taken for sRGB, and the pixels stay as they are.

Not implemented: gamma and chromaticities of a PNG without an ICC profile; frames and pages after the first.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps

from swiftmask.core.settings import POINTER, first_line

RULES = 2
"""Version of the rules: nothing that was made under another one is used again."""

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258
_DEEP = "more than 8 bits"
"""Set in an image's info where Pillow has cut its channels to 8 bits while loading."""

_SAME = 2
"""Of 255: what a profile may change and still count as sRGB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """The settings of the rules.

    Attributes:
        background: what transparent images are placed on: a colour's name, or #rrggbb.
        orientation: whether images are turned as EXIF says. ADM's reference statistics were made without.

    Errors: ValueError for a background that is no colour.
    """

    background: str = "white"
    orientation: bool = True

    def __post_init__(self) -> None:
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            raise ValueError(
                f"background {self.background!r} is no colour: expected a name, such as white, or #rrggbb"
            ) from error

    @property
    def colour(self) -> tuple[int, ...]:
        return ImageColor.getrgb(self.background)[:3]

    @property
    def identity(self) -> str:
        """Rules and settings, for caches and results."""
        turned = "turned by EXIF" if self.orientation else "EXIF orientation not applied"
        return f"rules {RULES}, background #{bytes(self.colour).hex()}, {turned}"


DEFAULT = Decoding()

_CHANGES = {
    "transparency": "had transparency: placed on {background}",
    "orientation": "had an EXIF orientation: turned",
    "unturned": "had an EXIF orientation, which was not applied",
    "depth": "had more than 8 bits a channel: scaled to 8",
    "colours": "were CMYK, LAB, HSV or YCbCr: converted to RGB",
    "profile": "had a colour profile: converted to sRGB",
    "no profile": "had a colour profile that is damaged or of other colours: taken for sRGB",
    "frames": "had several frames or pages: the first was read",
}
"""What may have to be done to an image, and how it is said."""


class DecodedImage(NamedTuple):
    """An image of mode RGB, and the names of what was done to it."""

    image: Image.Image
    changes: tuple[str, ...]


def said(counts: Mapping[str, int], total: int, decoding: Decoding) -> list[str]:
    """A sentence for each thing that was done to some of `total` pictures."""
    return [
        f"{counts[name]} of {total} image{'s' * (total > 1)} " + text.format(background=decoding.background)
        for name, text in _CHANGES.items()
        if counts.get(name)
    ]


def open_image(path: str | Path) -> Image.Image:
    """An image file as it is, in its own mode. Errors: FileNotFoundError; ValueError if it cannot be read."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such image file: {path}")
    with _opened(path.read_bytes(), str(path)) as image:
        return image


def read_image(path: Path, decoding: Decoding = DEFAULT) -> DecodedImage:
    """An image file in RGB. Errors: OSError; ValueError naming a file that cannot be read."""
    return decode_image(path.read_bytes(), str(path), decoding)


def decode_image(content: bytes, name: str, decoding: Decoding = DEFAULT) -> DecodedImage:
    """An image file's bytes in RGB. Errors: ValueError with `name` and what is wrong with the file."""
    with _opened(content, name) as image:
        return to_rgb(image, decoding)


def to_rgb(image: Image.Image, decoding: Decoding = DEFAULT) -> DecodedImage:
    """An image of any mode in RGB. Errors: ValueError for numbers whose scale is not known."""
    changes = ["frames"] if getattr(image, "n_frames", 1) > 1 else []
    if _is_deep(image) or image.info.get(_DEEP):
        changes.append("depth")
    profile = image.info.get("icc_profile")
    image = _turned(image, decoding, changes)
    colour, alpha = _without_alpha(_eight_bits(image))
    rgb = _in_srgb(colour, profile, changes)
    if alpha is not None:
        changes.append("transparency")
        background = Image.new("RGB", rgb.size, decoding.colour)
        background.paste(rgb, mask=alpha)
        rgb = background
    rgb.info = {}  # nothing is left to be applied a second time
    return DecodedImage(rgb, tuple(changes))


def numbers_of(image: Image.Image) -> tuple[np.ndarray, int]:
    """An image's grey values [H, W] as they are stored, and the largest that its mode can hold.

    Transparent places count as 0. Orientation is applied, profiles are not.
    """
    image = _turned(image, DEFAULT, [])
    if _is_deep(image):
        values_HW = np.asarray(image).astype(np.float64)
        scales = (65535,) if image.mode.startswith("I;16") else (1, 255, 65535)[image.mode == "I" :]
        return values_HW, next((scale for scale in scales if values_HW.max() <= scale), 65535)
    colour, alpha = _without_alpha(image)
    grey = (colour if colour.mode == "L" else colour.convert("RGB").convert("L")).copy()
    if alpha is not None:
        grey.paste(0, mask=alpha.point(lambda value: 255 - value))
    return np.asarray(grey).astype(np.float64), 255


@contextmanager
def _opened(content: bytes, name: str) -> Iterator[Image.Image]:
    """The loaded image. What it is used for may find it wrong, too."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            getattr(image, "n_frames", 1)  # counted while the file is open
            image.info[_DEEP] = any(map(_has_16_bits, image.tile))
            if image.mode == "L" and isinstance(image.info.get("transparency"), int):
                image.info["transparency"] *= next(map(_grey_scale, image.tile), 1)
            image.load()
            yield image
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(
            f"cannot read image {name} (more than {most} million pixels): scale it down"
        ) from error
    except Image.UnidentifiedImageError as error:
        if content.startswith(POINTER):
            why = "a Git-LFS pointer: run `git lfs pull` in its repository"
        else:
            why = "no image of a format that is read" if content else "empty"
        raise ValueError(f"cannot read image {name} ({why})") from error
    except Exception as error:  # Pillow's plugins raise almost anything for hostile files
        raise ValueError(f"cannot read image {name} ({first_line(error)})") from error


def _has_16_bits(tile: Any) -> bool:
    """Of a PNG or TIFF by its raw mode, of a PPM by its largest value."""
    return ";16" in str(tile.args) or (tile.codec_name.startswith("ppm") and tile.args[-1] > 255)


def _grey_scale(tile: Any) -> int:
    """What Pillow multiplies greys of 2 or 4 bits by while it loads them, but not the transparent one."""
    return {"L;2": 85, "L;4": 17}.get(tile.args, 1) if isinstance(tile.args, str) else 1


def _turned(image: Image.Image, decoding: Decoding, changes: list[str]) -> Image.Image:
    """Pillow turns a TIFF while it is loaded, so there it is always applied and never counted."""
    if image.getexif().get(_ORIENTATION) not in range(2, 9):
        return image
    changes.append("orientation" if decoding.orientation else "unturned")
    return ImageOps.exif_transpose(image) if decoding.orientation else image


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of more bits in mode L; others as they are."""
    if not _is_deep(image):
        return image
    values_HW = np.asarray(image)
    if image.mode == "F":
        scaled_HW = np.rint(values_HW * (255 / _float_scale(values_HW)))
    else:
        scaled_HW = values_HW.astype(np.int64) >> _whole_bits(image, values_HW) - 8
    grey = Image.fromarray(scaled_HW.astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values_HW == transparent, 0, 255).astype(np.uint8)))
    return grey


def _whole_bits(image: Image.Image, values_HW: np.ndarray) -> int:
    """How many bits an image of whole numbers uses. 32-bit files do not say: their values do."""
    if image.mode != "I":
        return int(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0])
    low, high = int(values_HW.min()), int(values_HW.max())
    if low < 0 or high > 65535:
        raise ValueError(f"32-bit values from {low} to {high}: expected 0 to 255, or 0 to 65535")
    return 8 if high <= 255 and image.format != "PPM" else 16


def _float_scale(values_HW: np.ndarray) -> float:
    """What white is: 1, or 255 where a value is above 1."""
    low, high = float(values_HW.min()), float(values_HW.max())
    if not (low >= 0 and high <= 255):  # NaN is neither
        raise ValueError(f"real values from {low:g} to {high:g}: expected 0 to 1, or 0 to 255")
    return 1.0 if high <= 1 else 255.0


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours without transparency, and the alpha channel if any of the image shows through."""
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if not image.has_transparency_data:
        plain = {"1": "L", "P": "RGB", "PA": "RGB", "RGBX": "RGB"}.get(image.mode)
        return (image.convert(plain) if plain else image), None
    wide = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
    alpha = wide.getchannel("A")
    colour = wide.getchannel("L") if wide.mode == "LA" else wide.convert("RGB")
    return colour, None if alpha.getextrema() == (255, 255) else alpha


def _in_srgb(image: Image.Image, profile: bytes | None, changes: list[str]) -> Image.Image:
    """Opaque colours of 8 bits in sRGB."""
    if image.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
        changes.append("colours")
    if image.mode in ("HSV", "YCbCr"):
        image = image.convert("RGB")
    if profile:
        try:
            transform, mode = _transform_of(profile, image.mode)
        except (ImageCms.PyCMSError, OSError, ValueError):
            changes.append("no profile")
        else:
            if transform is not None:
                changes.append("profile")
                return transform.apply(image.convert(mode))
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


@lru_cache(maxsize=16)
def _transform_of(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """What takes images to sRGB, and the mode it takes them in; None for a profile that is sRGB already.

    Errors: OSError or PyCMSError for a damaged profile, or one of other colours than the image's.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space: str = source.profile.xcolor_space  # pyright: ignore[reportAttributeAccessIssue]
    if space.strip() == "RGB" and mode == "L":
        mode = "RGB"
    # Tables that lcms computes beforehand are off by 10 of 255 for greys in linear light.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
    probe = _probe(mode)
    if probe is None:
        return transform, mode
    before, after = (np.asarray(x, np.int16) for x in (probe.convert("RGB"), transform.apply(probe)))
    return (None if np.abs(before - after).max() <= _SAME else transform), mode


def _probe(mode: str) -> Image.Image | None:
    """Colours all over the cube, or all greys; None for modes that are never sRGB."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    return Image.fromarray(cube) if mode == "RGB" else None


def counted(changes: Sequence[Sequence[str]]) -> dict[str, int]:
    """How many images each thing was done to."""
    return {name: n for name in _CHANGES if (n := sum(name in one for one in changes))}
