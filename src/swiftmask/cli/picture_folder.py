"""The folder of `swiftmask generate`: which pictures are there, with which settings each was drawn."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftmask.cli.jobs import Job
from swiftmask.core.settings import parse_json
from swiftmask.core.writing import written_whole

if TYPE_CHECKING:
    from PIL import Image

_STAMP = "swiftmask"
"""Text chunk of a PNG that holds the settings it was drawn with."""

_OF_A_JOB = ("what", "seed", "negative_prompt")
_SHOWN = 100
_NAMED = 3


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """Pictures of one set of settings.

    Attributes:
        settings: all that decides a picture besides its class or prompt and its seed.
    """

    path: Path
    settings: dict[str, Any]

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        """Those not drawn yet, drawn with other settings, or damaged."""
        return [job for job in jobs if _whole_stamp(self.path / job.file_name) != self._stamp(job)]

    def refuse_others(self, jobs: Sequence[Job]) -> None:
        """Errors: ValueError naming a picture of other settings and the difference, or one of `jobs` whose
        file was not drawn by swiftmask.
        """
        names, ours = {job.file_name for job in jobs}, json.loads(json.dumps(self.settings))
        for path in sorted(self.path.glob("*.png")):
            stamp = _stamp_of(path)
            if stamp == "" and path.name in names:
                raise ValueError(
                    f"{path} was not drawn by swiftmask: choose another --out, or --overwrite to replace it"
                )
            if stamp and (difference := _difference(parse_json(stamp, source=str(path)), ours)):
                raise ValueError(
                    f"{self.path} holds pictures drawn with other settings ({path.name}: {difference}): "
                    "choose another --out, or --overwrite to draw here all the same"
                )

    def save(self, image: "Image.Image", job: Job) -> None:
        """One picture as a PNG that knows its settings."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text(_STAMP, self._stamp(job))
        with written_whole(self.path / job.file_name) as partial:
            image.save(partial, format="PNG", pnginfo=info)

    def save_overview(self, name: str, jobs: Sequence[Job]) -> None:
        """At most 100 of the pictures in one, near-square."""
        grid = _grid([self.path / job.file_name for job in jobs[:_SHOWN]])
        with written_whole(self.path / name) as partial:
            grid.save(partial, format="PNG")

    def _stamp(self, job: Job) -> str:
        return json.dumps({**self.settings, **job.facts()}, sort_keys=True)


def _stamp_of(path: Path) -> str | None:
    """What a PNG says of itself; "" if it is not ours, None if there is none or it is damaged."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return str(image.info.get(_STAMP, ""))
    except Exception:  # Pillow raises almost anything for files that are damaged or too large
        return None


def _whole_stamp(path: Path) -> str | None:
    """As `_stamp_of`, None also for a picture whose pixels are damaged."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return str(image.info.get(_STAMP, ""))
    except Exception:  # as above
        return None


def _difference(there: dict[str, Any], now: dict[str, Any]) -> str:
    """Settings that differ, a few of them by name; empty if none does."""
    old, new = _flat(there), _flat(now)
    keys = [key for key in {**old, **new} if key not in _OF_A_JOB and old.get(key) != new.get(key)]
    named = [f"{key} {old.get(key)} there, {new.get(key)} now" for key in keys[:_NAMED]]
    return "; ".join(named) + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with those of sampling beside the others."""
    sampling = settings.get("sampling") or {}
    return {**{key: value for key, value in settings.items() if key != "sampling"}, **sampling}


def _grid(files: Sequence[Path]) -> "Image.Image":
    from PIL import Image

    columns = max(1, round(len(files) ** 0.5))
    with Image.open(files[0]) as first:
        width, height = first.size
    grid = Image.new("RGB", (columns * width, -(-len(files) // columns) * height), "white")
    for index, file in enumerate(files):
        with Image.open(file) as image:
            grid.paste(image.convert("RGB"), (index % columns * width, index // columns * height))
    return grid
