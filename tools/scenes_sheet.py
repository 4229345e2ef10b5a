"""Write the sheet of docs/scenes.md: scenes above, one image of every class below."""

from pathlib import Path

import torch
from PIL import Image

from swiftmask.data.images.pixels import to_bytes
from swiftmask.data.scenes import NUM_CLASSES, class_scenes, concat_scenes, render, sample_scenes

_COLUMNS = 12
_BORDER = 2


def save_sheet(path: str | Path, *, rows: int = 3, size: int = 96) -> None:
    """Writes a PNG of `rows` rows of scenes with 1-3 objects, then the 48 classes."""
    labels_B = torch.arange(NUM_CLASSES)
    scenes = concat_scenes(
        [sample_scenes(range(rows * _COLUMNS)), class_scenes(labels_B, range(NUM_CLASSES))]
    )
    images_B3HW = torch.nn.functional.pad(render(scenes, size), (_BORDER,) * 4, value=1.0)
    side = size + 2 * _BORDER
    sheet = images_B3HW.view(-1, _COLUMNS, 3, side, side).permute(0, 3, 1, 4, 2)
    Image.fromarray(to_bytes(sheet.reshape(-1, _COLUMNS * side, 3)).numpy()).save(path)


if __name__ == "__main__":
    save_sheet(Path(__file__).parents[1] / "docs" / "images" / "scenes.png")
