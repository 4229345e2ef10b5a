"""A folder of images with columns: a pattern (the concept) on a background (the style).

One style of every fifth concept is held out.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CONCEPTS = tuple(
    f"number {word}" for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")
)
STYLES = ("dark", "light", "red", "sea, blue")
"""One value has a comma, as class names have between values."""

NOTICE = "Patterns by nobody, CC0.\n"
_BACKGROUNDS = ((20, 20, 20), (250, 250, 250), (220, 60, 60), (60, 110, 220))


def write_pairs(folder: Path, *, side: int = 64, concepts: int = len(CONCEPTS)) -> Path:
    """Write `concepts` x 4 images, metadata.jsonl, NOTICE.md, prompts-held-out.jsonl; returns `folder`."""
    rows, prompts = [], []
    for number, concept in enumerate(CONCEPTS[:concepts]):
        for place, (style, colour) in enumerate(zip(STYLES, _BACKGROUNDS, strict=True)):
            pixels = np.full((side, side, 3), colour, np.uint8)
            cells = np.random.default_rng(number).random((4, 4)) < 0.5
            pixels[np.kron(cells, np.ones((side // 4, side // 4), bool))] = (240, 200, 40)
            name = f"{number}-{place}.png"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
            split = "held-out" if number % 5 == 0 and place == number % 4 else "train"
            caption = f"{concept}, {style} style"
            row = {"file_name": name, "caption": caption, "captions": [f"a {style} {concept}"]}
            row["group"] = ("even", "odd")[number % 2]
            rows.append(row | {"concept": concept, "style": style, "split": split, "licence": "CC0"})
            if split != "train":
                prompts.append({"prompt": caption, "concept": concept, "style": style})
    for name, lines in (("metadata.jsonl", rows), ("prompts-held-out.jsonl", prompts)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "NOTICE.md").write_text(NOTICE)
    return folder
