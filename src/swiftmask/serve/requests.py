"""The body of a request to what it asks for, checked against the ranges that the command line has, too.

Fields are OpenAI's, and ours beside them (docs/serving.md). Nothing is ignored in silence: an unknown field,
or a value of OpenAI's that means nothing here, is refused.
"""

import base64
import io
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.ranges import RANGES, SEED, Range, check
from swiftmask.core.settings import first_line, parse_json
from swiftmask.data.images.decode import decode_image, numbers_of
from swiftmask.data.prompts import require_text
from swiftmask.registry import suggestion
from swiftmask.serve.errors import RequestError

OutputFormat = Literal["png", "webp"]

_SAMPLING = ("guidance", "temperature", "choice_temperature", "schedule_power")
_WHOLE = ("n", "seed", "steps", "full_steps", "partial_images", "output_compression")
_TEXTS = ("prompt", "negative_prompt", "model", "preset", "size", "output_format", "response_format", "user")
_ONLY = {
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "style": ("natural", "vivid"),
    "input_fidelity": ("low", "high"),
}
"""Fields of OpenAI's that choose nothing here, and the values that are let pass."""
_FIELDS = {*_SAMPLING, *_WHOLE, *_TEXTS, *_ONLY, "labels", "stream"}
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
_MOST_PARTIAL = 16
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Of what one request may ask for.

    Attributes:
        max_images: images of a request.
        max_prompt: letters of a prompt.
        max_steps: decode steps.
        max_pixels: of an image that is sent.
    """

    max_images: int = 16
    max_prompt: int = 2000
    max_steps: int = 64
    max_pixels: int = 2**24


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request asks for.

    Attributes:
        what: prompts, or classes by number or name; with a seed each.
        size: height and width in pixels.
    """

    what: list[str]
    seeds: list[int]
    negative_prompt: str = ""
    model: str | None = None
    preset: str | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None
    full_steps: int | None = None
    sampling: SamplingOptions = SamplingOptions()
    output_format: OutputFormat = "png"
    compression: int | None = None
    stream: bool = False
    num_partial: int = 0
    image: Image.Image | None = field(default=None, repr=False)
    mask: Image.Image | None = field(default=None, repr=False)


def read_json_request(body: bytes, limits: RequestLimits) -> Asked:
    """The body of POST /v1/images/generations. Errors: RequestError."""
    try:
        content = parse_json(body, source="the body")
    except ValueError as error:
        raise RequestError(first_line(error), code="invalid_json") from error
    return read_fields(content, limits)


def read_form_request(
    texts: Sequence[tuple[str, str]], files: Mapping[str, Sequence[bytes]], limits: RequestLimits
) -> Asked:
    """The parts of POST /v1/images/edits.

    Args:
        texts: name and value of each part that is no file.
        files: contents by name: image, and perhaps mask.

    Errors: RequestError.
    """
    content = _from_form(texts)
    if unknown := set(files) - {"image", "mask"}:
        raise RequestError(
            f"unknown file {min(unknown)[:80]!r}: send image and mask", param=min(unknown)[:80]
        )
    if len(files.get("image", ())) != 1 or len(files.get("mask", ())) > 1:
        raise RequestError(
            f"expected one image and at most one mask, got {len(files.get('image', ()))} and "
            f"{len(files.get('mask', ()))}",
            param="image",
        )
    image = _read_image(files["image"][0], "image", limits)
    mask = _read_image(files["mask"][0], "mask", limits) if files.get("mask") else None
    return replace(read_fields(content, limits), image=image, mask=mask_of(image, mask))


def read_fields(content: Mapping[str, Any], limits: RequestLimits) -> Asked:
    """Fields to what they ask for. Errors: RequestError naming the field."""
    for name in content:
        if name not in _FIELDS:
            raise RequestError(f"unknown field {name[:80]!r}{suggestion(name, _FIELDS)}", param=name[:80])
    given = {name: value for name, value in content.items() if value is not None}
    for name, values in _ONLY.items():
        if given.get(name, values[0]) not in values:
            raise RequestError(f"{name} must be {' or '.join(values)}, or left out", param=name)
    for name in _TEXTS:
        _check_text(name, given.get(name, ""), limits)
    numbers = _numbers(given, limits)
    what, num_each = _what(given, limits), int(numbers.get("n", 1))
    if len(what) * num_each > limits.max_images:
        raise RequestError(
            f"expected at most {limits.max_images} images a request, got {len(what) * num_each}", param="n"
        )
    what = [each for each in what for _ in range(num_each)]
    output_format = _choice(given, "output_format", ("png", "webp"))
    compression = numbers.get("output_compression")
    if compression is not None and output_format == "png":
        raise RequestError("output_compression goes with output_format webp", param="output_compression")
    _choice(given, "response_format", ("b64_json",))
    stream = given.get("stream", False)
    if not isinstance(stream, bool):
        raise RequestError(f"stream must be true or false, got {stream!r:.80}", param="stream")
    if numbers.get("partial_images") and not stream:
        raise RequestError("partial_images needs stream=true", param="partial_images")
    return Asked(
        what=what,
        seeds=_seeds(numbers.get("seed"), len(what) // num_each, num_each),
        negative_prompt=given.get("negative_prompt", "").strip(),
        model=given.get("model"),
        preset=given.get("preset"),
        size=_size(given.get("size", "auto")),
        steps=numbers.get("steps"),
        full_steps=numbers.get("full_steps"),
        sampling=SamplingOptions(**{name: numbers[name] for name in _SAMPLING if name in numbers}),
        output_format=output_format,  # type: ignore[arg-type]
        compression=compression,
        stream=stream,
        num_partial=numbers.get("partial_images", 0),
    )


def mask_of(image: Image.Image, mask: Image.Image | None) -> Image.Image | None:
    """A mask that is white where to generate anew.

    OpenAI's masks are transparent there, of the mask or, without one, of the image; ours are white. A mask
    with a transparent pixel is read as OpenAI's.
    """
    clear = mask if mask is not None else image
    if not clear.has_transparency_data:
        return mask
    alpha_HW = np.asarray(clear.convert("RGBA"))[..., 3]
    if (alpha_HW == 255).all():
        return mask
    return Image.fromarray(np.where(alpha_HW < 128, 255, 0).astype(np.uint8))


def encoded(image: Image.Image, output_format: OutputFormat, compression: int | None) -> str:
    """An image file in base64. Lossless, but for WebP with a compression, its quality from 0 to 100."""
    file = io.BytesIO()
    if output_format == "png":
        image.save(file, "PNG", compress_level=4)
    elif compression is None:
        image.save(file, "WEBP", lossless=True, quality=50, method=2)
    else:
        image.save(file, "WEBP", quality=compression)
    return base64.b64encode(file.getvalue()).decode()


def _numbers(given: Mapping[str, Any], limits: RequestLimits) -> dict[str, Any]:
    """The fields that are numbers, each in its range."""
    ranges = {
        "n": Range(low=1, high=limits.max_images),
        "seed": SEED,
        "steps": Range(low=1, high=min(limits.max_steps, RANGES["steps"].high)),
        "full_steps": Range(low=1, high=limits.max_steps),
        "partial_images": Range(low=0, high=_MOST_PARTIAL),
        "output_compression": Range(low=0, high=100),
    }
    numbers = {}
    for name in (*_WHOLE, *_SAMPLING):
        if name in given:
            allowed = ranges.get(name) or RANGES[name]
            try:
                check(name, given[name], allowed, int if name in _WHOLE else float)
            except ValueError as error:
                raise RequestError(first_line(error), param=name, code="out_of_range") from error
            numbers[name] = given[name]
    return numbers


def _check_text(name: str, value: object, limits: RequestLimits) -> None:
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a text, got {value!r:.80}", param=name)
    longest = limits.max_prompt if name in ("prompt", "negative_prompt") else _LONGEST_NAME
    if len(value) > longest:
        raise RequestError(
            f"{name} has {len(value)} letters, at most {longest} are read", param=name, code="too_long"
        )
    try:
        require_text(value)
    except ValueError as error:
        raise RequestError(first_line(error), param=name) from error


def _what(given: Mapping[str, Any], limits: RequestLimits) -> list[str]:
    """What to generate, once each: the labels, or else the prompt."""
    prompt, labels = given.get("prompt", "").strip(), given.get("labels")
    if labels is None:
        if not prompt:
            raise RequestError("prompt is empty: say what to generate", param="prompt")
        return [prompt]
    if prompt:
        raise RequestError("give prompt or labels, not both: leave the prompt empty", param="labels")
    if not isinstance(labels, list) or not labels:
        raise RequestError("labels must be a list of classes, by number or name", param="labels")
    if len(labels) > limits.max_images:
        raise RequestError(
            f"expected at most {limits.max_images} images a request, got {len(labels)}", param="labels"
        )
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, str | int) or len(str(label)) > _LONGEST_NAME:
            raise RequestError(
                f"labels must be classes, by number or name, got {label!r:.80}", param="labels"
            )
        _check_text("labels", str(label), limits)
    return [str(label).strip() for label in labels]


def _seeds(seed: int | None, num_different: int, num_each: int) -> list[int]:
    """As `swiftmask generate --seed`: the same seeds for each class. Without a seed they are random."""
    if seed is None:
        return [secrets.randbits(53) for _ in range(num_different * num_each)]  # JSON's readers keep 53 bits
    if seed + num_each - 1 > SEED.high:
        raise RequestError(
            f"seed + n - 1 must be at most 2**64 - 1, got {seed} + {num_each} - 1", param="seed"
        )
    return [seed + place for _ in range(num_different) for place in range(num_each)]


def _size(text: str) -> tuple[int, int] | None:
    """Height and width; OpenAI's size is width x height."""
    if text == "auto":
        return None
    width, _, height = text.partition("x")
    sides = [side for side in (height, width) if side.isascii() and side.isdecimal() and len(side) <= 5]
    if len(sides) != 2 or not all(map(RANGES["size"].holds, map(int, sides))):
        raise RequestError(
            f"size must be auto or WIDTHxHEIGHT in pixels, such as 64x64, got {text[:40]!r}", param="size"
        )
    return int(sides[0]), int(sides[1])


def _choice(given: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = given.get(name, choices[0])
    if value not in choices:
        raise RequestError(f"{name} must be {' or '.join(choices)}, got {value[:40]!r}", param=name)
    return value


def _from_form(texts: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Form fields as JSON would have them: numbers, truths, and lists called `name[]`."""
    content: dict[str, Any] = {}
    for name, text in texts:
        if name in ("labels", "labels[]"):
            content.setdefault("labels", []).append(text)
        elif name in content:
            raise RequestError(f"the field {name[:80]!r} is given twice", param=name[:80])
        else:
            content[name] = _value(name, text)
    return content


def _value(name: str, text: str) -> Any:
    if name == "stream" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if name in _WHOLE and text.removeprefix("-").isdecimal() and len(text) <= 24:
        return int(text)
    if name in _SAMPLING:
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _read_image(content: bytes, name: str, limits: RequestLimits) -> Image.Image:
    """An image in its own mode; its size is known, and refused, before anything is unpacked."""
    try:
        with Image.open(io.BytesIO(content), formats=_IMAGE_FORMATS) as image:
            num_pixels = image.width * image.height
            if num_pixels <= limits.max_pixels:
                decode_image(content, repr(name))  # complains in our words
                numbers_of(image)
                image.load()
                return image.copy()
    except ValueError as error:
        raise RequestError(first_line(error), param=name, code="invalid_image") from error
    except Exception as error:  # Pillow's plugins raise almost anything for hostile files
        raise RequestError(
            f"{name} is no PNG, JPEG or WebP image that can be read", param=name, code="invalid_image"
        ) from error
    raise RequestError(
        f"{name} has {num_pixels} pixels, at most {limits.max_pixels} are read: scale it down",
        status=413,
        param=name,
    )
