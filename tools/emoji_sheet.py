"""Write docs/images/meissonic-emoji.png: generated images above the real ones.

swiftmask data emoji --out runs/emoji --source data/emoji
python tools/emoji_sheet.py runs/emoji
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import swiftmask
from swiftmask.data.emoji.build import read_records
from swiftmask.data.prompts import read_prompts
from swiftmask.evaluate.sheets import side_by_side

ROOT = Path(__file__).parents[1]
_SHOWN = 16
_EVERY = {"prompts-trained.jsonl": 1, "prompts-held-out.jsonl": 10}
"""Prompts are not chosen: the first ones, or every tenth."""


def _pixels(file: Path) -> Tensor:
    """An image in [0, 1]: [3, H, W]."""
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


def main(folder: Path) -> None:
    """One row of generated images and one of real ones for each file of prompts; seeds count from 0."""
    model = swiftmask.load("meissonic-emoji")
    files = {(record.concept, record.style): folder / record.file_name for record in read_records(folder)}
    rows: list[Tensor] = []
    for name, every in _EVERY.items():
        shown = read_prompts(str(folder / name))[::every][:_SHOWN]
        texts, seeds = [prompt.text for prompt in shown], list(range(len(shown)))
        generated = model.generate(prompts=texts, seeds=seeds, output_type="pt").images
        assert isinstance(generated, Tensor)
        real = [files[prompt.columns["concept"], prompt.columns["style"]] for prompt in shown]
        rows += [generated.float(), torch.stack([_pixels(file) for file in real])]
    (ROOT / "docs" / "images" / "meissonic-emoji.png").write_bytes(side_by_side(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
