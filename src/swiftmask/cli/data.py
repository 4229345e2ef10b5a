"""`swiftmask data emoji`: build the Emoji image folder."""

import json as json_module
from dataclasses import asdict, dataclass
from pathlib import Path

from swiftmask.cli.progress import progress_bar
from swiftmask.training.lock import sole_writer


@dataclass(frozen=True, slots=True, kw_only=True)
class DataEmoji:
    """Build the Emoji images: 6,252 images with captions in four styles (docs/emoji.md).

    An interrupted run continues. Images of 64 pixels are checked against a published hash.
    """

    out: Path
    """Folder to write: STYLE/NAME.png, metadata.jsonl, prompt files and licences."""
    source: Path | None = None
    """Folder with the five npm packages, or the pack of a checkout (data/emoji); default: npm fetches."""
    size: int = 64
    """Pixels of a side."""
    json: bool = False
    """Print the summary as JSON."""

    def run(self) -> int:
        from swiftmask.data.emoji import build_emoji

        if not 16 <= self.size <= 1024:
            raise ValueError(f"--size must be between 16 and 1024 pixels, got {self.size}")
        if self.source is not None and not self.source.is_dir():
            raise FileNotFoundError(f"no such folder: {self.source}")
        with sole_writer(self.out), progress_bar() as progress:
            task = progress.add_task("writing", total=None, unit="images")
            built = build_emoji(
                self.out,
                source=self.source,
                size=self.size,
                on_image=lambda done, total: progress.update(task, completed=done, total=total),
            )
        if self.json:
            print(json_module.dumps({"out": str(self.out), **asdict(built)}, indent=2))
        else:
            print(f"{built.num_images} images in {self.out}, {built.num_rendered} of them written now")
        return 0
