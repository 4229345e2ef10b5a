"""Render the Emoji images to a folder, or take them from the pack that a checkout holds.

The pack is one lossless WebP sheet a style (`data/emoji` of the repository, not in the wheel), so that the
images are there without npm and without a renderer.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from swiftmask.core.optional import library
from swiftmask.core.settings import parse_json, record_of
from swiftmask.core.writing import write_text, written_whole
from swiftmask.data.emoji.packages import ICONS, WORDS, Concept, fetch_packages, read_concepts
from swiftmask.data.emoji.records import (
    STYLES,
    EmojiRecord,
    free_prompts,
    held_out_prompts,
    trained_prompts,
)

NUM_IMAGES = 6252
SIZE = 64
"""Pixels of a side, of the images whose hash is known."""

PIXELS_SHA256 = "cbdb97065204a94dd8141052960246d421f2e0cf8ecb36a4ccbe9edf5e3985f6"
"""Of the pixels at `SIZE`, in the order of metadata.jsonl: rendered by resvg-py 0.5.0, reduced by Pillow."""

_OVERSAMPLING = 4
"""Images are rendered larger and averaged: the renderer does not smooth the masks of Fluent's icons."""

COLUMNS = 40
"""Images in a row of a pack's sheets."""

METADATA, FACTS, NOTICE_FILE = "metadata.jsonl", "dataset.json", "NOTICE.md"

OnImage = Callable[[int, int], None]
"""Called with images done and in all."""


@dataclass(frozen=True, slots=True)
class Built:
    """What lies in the folder.

    Attributes:
        sha256: of the pixels.
        num_rendered: images made now; the others were there.
    """

    num_images: int
    num_rendered: int
    sha256: str


def build_emoji(
    out: Path, *, source: Path | None = None, size: int = SIZE, on_image: OnImage = lambda done, total: None
) -> Built:
    """Write the images with `metadata.jsonl`, prompt files, licences and `dataset.json`, which comes last.

    Images that are there already are kept, so an interrupted run continues.

    Args:
        source: folder with the npm packages, or a pack; None downloads the packages into `out/.packages`.
        size: pixels of a side; a pack has `SIZE` only.

    Errors: ValueError or FileNotFoundError for a source that is incomplete, or pixels that are not the
        published ones.
    """
    if source is not None and (source / FACTS).is_file():
        records, images = _from_pack(source, size)
    else:
        if source is None:
            source = out / ".packages"
            fetch_packages(source)
        concepts = read_concepts(source)
        records = [EmojiRecord.of(c.key, style, c.group, c.keywords) for style in STYLES for c in concepts]
        images = _rendered(concepts, size)
    if len(records) != NUM_IMAGES:
        raise ValueError(f"{source} has {len(records)} images, expected {NUM_IMAGES}: use the named versions")
    num_rendered = 0
    for done, (record, render) in enumerate(zip(records, images, strict=True), 1):
        num_rendered += _keep_or_write(out / record.file_name, render, size)
        on_image(done, len(records))
    sha256 = pixels_sha256(Image.open(out / record.file_name) for record in records)
    if size == SIZE and sha256 != PIXELS_SHA256:
        raise ValueError(
            f"the images in {out} are not the published ones (SHA-256 {sha256[:12]}, expected "
            f"{PIXELS_SHA256[:12]}): remove the folder, install resvg-py 0.5.0, and run again"
        )
    _write_texts(out, records, size=size, sha256=sha256)
    return Built(len(records), num_rendered, sha256)


def read_records(folder: Path) -> list[EmojiRecord]:
    """The lines of `metadata.jsonl`. Errors: FileNotFoundError; ValueError for a damaged line."""
    path = folder / METADATA
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: `swiftmask data emoji --out {folder}` writes it")
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line:
            source = f"{path}: line {number}"
            records.append(record_of(EmojiRecord, parse_json(line, source=source), source=source))
    if not records:
        raise ValueError(f"{path} is empty: `swiftmask data emoji --out {folder}` writes it")
    return records


def pixels_sha256(images: Iterable[Image.Image]) -> str:
    """Of the RGB bytes of images, one after the other."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(np.asarray(image.convert("RGB")).tobytes())
    return digest.hexdigest()


def pack_images(pack: Path, records: list[EmojiRecord]) -> Iterator[Image.Image]:
    """The images of a pack, in the order of its records."""
    for style in STYLES:
        with Image.open(pack / f"{style}.webp") as opened:
            sheet = opened.convert("RGB")
        for place in range(sum(record.style == style for record in records)):
            x, y = corner_of(place)
            yield sheet.crop((x, y, x + SIZE, y + SIZE))


def _rendered(concepts: list[Concept], size: int) -> Iterator[Callable[[], Image.Image]]:
    resvg = library("resvg_py", "rendering the emoji")

    def render(svg: str) -> Image.Image:
        side = size * _OVERSAMPLING
        content = resvg.svg_to_bytes(svg_string=svg, width=side, height=side, background="white")
        with Image.open(io.BytesIO(bytes(content))) as image:
            return image.convert("RGB").reduce(_OVERSAMPLING)

    for style in STYLES:
        for concept in concepts:
            yield lambda svg=concept.svgs[style]: render(svg)


def _from_pack(pack: Path, size: int) -> tuple[list[EmojiRecord], Iterator[Callable[[], Image.Image]]]:
    if size != SIZE:
        raise ValueError(f"{pack} has images of {SIZE} pixels, got size {size}: leave out --source to render")
    records = read_records(pack)
    return records, (lambda image=image: image for image in pack_images(pack, records))


def corner_of(place: int) -> tuple[int, int]:
    return place % COLUMNS * SIZE, place // COLUMNS * SIZE


def _keep_or_write(path: Path, render: Callable[[], Image.Image], size: int) -> bool:
    """Whether the image had to be made."""
    if path.is_file():
        with Image.open(path) as image:
            if image.size == (size, size):
                return False
    with written_whole(path) as partial:
        render().save(partial, format="PNG")
    return True


def _write_texts(out: Path, records: list[EmojiRecord], *, size: int, sha256: str) -> None:
    facts = {
        "name": "emoji",
        "num_images": len(records),
        "size": size,
        "pixels_sha256": sha256,
        "packages": {package.name: package.version for package in (*ICONS.values(), WORDS)},
    }
    texts = {
        "prompts-trained.jsonl": _jsonl(map(asdict, trained_prompts(records))),
        "prompts-held-out.jsonl": _jsonl(map(asdict, held_out_prompts(records))),
        "prompts-free.jsonl": _jsonl(map(asdict, free_prompts(records))),
        NOTICE_FILE: NOTICE,
        METADATA: _jsonl([record.line() for record in records]),
        FACTS: json.dumps(facts, indent=2) + "\n",
    }
    for name, text in texts.items():
        write_text(out / name, text)


def _jsonl(lines: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


NOTICE = """# Emoji: licences and attributions

The images are renderings of four emoji sets, reduced to a white square. Whoever passes on the images, or
weights trained on them, passes on this notice.

| folder | set | authors | licence |
|---|---|---|---|
| noto | Noto Emoji (https://github.com/googlefonts/noto-emoji) | Google Inc | Apache-2.0 |
| twemoji | Twemoji (https://github.com/jdecked/twemoji) | Twitter, Inc and other contributors | CC-BY-4.0 |
| fluent | Fluent Emoji (https://github.com/microsoft/fluentui-emoji) | Microsoft Corporation | MIT |
| flat | Fluent Emoji flat (https://github.com/microsoft/fluentui-emoji) | Microsoft Corporation | MIT |

CC-BY-4.0: https://creativecommons.org/licenses/by/4.0/
Changes: rendered at four times the size on white and averaged down to the size of the folder.
The SVG files come from the packages of Iconify (@iconify-json).
Keywords come from emojibase-data (MIT, Miles Johnson).
"""
