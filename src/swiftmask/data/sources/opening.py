"""From a setting to a data source."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swiftmask.core.ranges import check_fields
from swiftmask.data.images.decode import Decoding
from swiftmask.data.scenes import World
from swiftmask.data.sources.folder import FolderSource
from swiftmask.data.sources.scenes import SceneSource
from swiftmask.data.sources.source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """How a data source is read.

    Attributes:
        classes: columns of the metadata whose combinations are the classes; empty takes the subfolders.
        decoding: what transparent images are placed on, and whether EXIF turns them.
        held_out: share of the images that is never trained on, where the source has no splits of its own.
        mirror: whether training sees mirror images, too. Text and logos should not be mirrored.
        num_images: of Scenes, which are rendered from seeds.
        world: what captioned Scenes show.
        split: of a Hugging Face dataset.
    """

    classes: tuple[str, ...] = ()
    decoding: Decoding = Decoding()
    held_out: float = 0.05
    mirror: bool = False
    num_images: int = 60_000
    world: World = World()
    split: str = "train"

    def __post_init__(self) -> None:
        check_fields(self)


def open_source(data: str, config: DataConfig) -> Source:
    """The source that a setting names.

    Args:
        data: a folder; "scenes:classes" or "scenes:captions"; or what Hugging Face `datasets` opens: a
            Parquet file, a WebDataset tar, or "hub:OWNER/NAME" (extra `data`).

    Errors: FileNotFoundError; ValueError saying what was expected.
    """
    if not data:
        raise ValueError(
            "data is not set: add it to the command, as in data=products/ (a folder of images), "
            "data=hub:OWNER/NAME or data=scenes:classes"
        )
    if data.startswith("scenes:"):
        kinds = {"scenes:classes": None, "scenes:captions": config.world}
        if data not in kinds:
            raise ValueError(f"unknown data {data!r}: expected scenes:classes or scenes:captions")
        return _typed(SceneSource(config.num_images, kinds[data]))
    path = Path(data).expanduser()
    is_dataset = path.suffix in (".parquet", ".tar", ".arrow") or (
        path.is_dir() and any(any(path.glob(f"*{kind}")) for kind in (".parquet", ".tar", ".arrow"))
    )
    if data.startswith("hub:") or is_dataset:
        from swiftmask.data.sources.hub import open_dataset

        return _typed(open_dataset(data.removeprefix("hub:"), config.split, config.decoding, config.classes))
    return _typed(FolderSource(path, config.decoding, config.classes))


def _typed(source: Any) -> Source:
    """The source itself: type checkers take no cached property for a property."""
    return source
