"""Write docs/images/MODEL.png for the bundled models of Emoji: generated images above the real ones.

swiftmask data emoji --out runs/emoji --source data/emoji
python tools/emoji_sheet.py runs/emoji
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import swiftmask
from swiftmask.data.emoji.build import read_records
from swiftmask.data.prompts import read_prompts
from swiftmask.evaluate.sheets import side_by_side

ROOT = Path(__file__).parents[1]
_MODELS = ("meissonic-emoji", "maskgit-emoji", "mar-emoji")
_SHOWN = 16
_EVERY = {"prompts-trained.jsonl": 1, "prompts-held-out.jsonl": 10}
"""Prompts are not chosen: the first ones, or every tenth."""


def _pixels(file: Path) -> Tensor:
    """An image in [0, 1]: [3, H, W]."""
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


def sheet(name: str, folder: Path) -> bytes:
    """One row of generated images and one of real ones for each file of prompts; seeds count from 0."""
    model = swiftmask.load(name)
    files = {(record.concept, record.style): folder / record.file_name for record in read_records(folder)}
    rows: list[Tensor] = []
    for prompts, every in _EVERY.items():
        shown = read_prompts(str(folder / prompts))[::every][:_SHOWN]
        pairs = [(prompt.columns["concept"], prompt.columns["style"]) for prompt in shown]
        asked: dict[str, Any] = (
            {"labels": [", ".join(pair) for pair in pairs]}
            if model.model.spec.draws == "class"
            else {"prompts": [prompt.text for prompt in shown]}
        )
        generated = model.generate(**asked, seeds=range(len(shown)), output_type="pt").images
        assert isinstance(generated, Tensor)
        rows += [generated.float(), torch.stack([_pixels(files[pair]) for pair in pairs])]
    return side_by_side(rows)


def main(folder: Path) -> None:
    for name in _MODELS:
        (ROOT / "docs" / "images" / f"{name}.png").write_bytes(sheet(name, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
