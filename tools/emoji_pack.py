"""Write the pack of Emoji images that the repository holds, and the sheet of docs/emoji.md.

swiftmask data emoji --out runs/emoji
python tools/emoji_pack.py runs/emoji
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from swiftmask.data.emoji import STYLES, EmojiRecord
from swiftmask.data.emoji.build import COLUMNS, FACTS, METADATA, NOTICE_FILE, SIZE, corner_of, read_records

ROOT = Path(__file__).parents[1]
_SHOWN = 16
_SCALE = 2


def write_pack(folder: Path, out: Path) -> None:
    """Turn a folder that `build_emoji` wrote into a pack: a WebP sheet a style, and the texts.

    Errors: FileNotFoundError for an unfinished folder.
    """
    records = read_records(folder)
    out.mkdir(parents=True, exist_ok=True)
    for style in STYLES:
        files = [folder / record.file_name for record in records if record.style == style]
        sheet = Image.new("RGB", (COLUMNS * SIZE, -(-len(files) // COLUMNS) * SIZE), "white")
        for place, file in enumerate(files):
            with Image.open(file) as image:
                sheet.paste(image, corner_of(place))
        sheet.save(out / f"{style}.webp", lossless=True, quality=100, method=4)
    for name in (METADATA, NOTICE_FILE, FACTS):
        (out / name).write_bytes((folder / name).read_bytes())


def sheet(folder: Path, records: list[EmojiRecord]) -> Image.Image:
    """Concepts with a held-out style, one a column; a red frame marks the pair that is not trained on."""
    held_out = sorted(record.concept for record in records if record.split == "held-out")
    concepts = held_out[:: len(held_out) // _SHOWN][:_SHOWN]
    by_pair = {(record.concept, record.style): record for record in records}
    side = SIZE * _SCALE
    page = Image.new("RGB", (side * len(concepts), side * len(STYLES)), "white")
    frame = ImageDraw.Draw(page)
    for column, concept in enumerate(concepts):
        for row, style in enumerate(STYLES):
            record = by_pair[concept, style]
            corner = (column * side, row * side)
            with Image.open(folder / record.file_name) as image:
                page.paste(image.resize((side, side), Image.Resampling.NEAREST), corner)
            if record.split == "held-out":
                box = (corner[0] + 1, corner[1] + 1, corner[0] + side - 2, corner[1] + side - 2)
                frame.rectangle(box, outline="red", width=3)
    return page


def main(folder: Path) -> None:
    """Write `data/emoji` and `docs/images/emoji.png`."""
    write_pack(folder, ROOT / "data" / "emoji")
    sheet(folder, read_records(folder)).save(ROOT / "docs" / "images" / "emoji.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
