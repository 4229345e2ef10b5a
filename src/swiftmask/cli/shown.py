"""What a report page shows of the rows: images at equal seeds, and how one of them came about."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from swiftmask.core.types import Record
    from swiftmask.evaluate.report import Gallery, Timeline
    from swiftmask.evaluate.requests import Requests
    from swiftmask.evaluate.study import Row
    from swiftmask.pipeline import Pipeline

Shown = tuple[list[Any], list[int]]
"""Classes or prompts, and image seeds."""


def generate_shown(
    rows: "Sequence[Row]", shown: Shown, on_row: Callable[[str], None] = lambda name: None
) -> "dict[str, Tensor]":
    """The same images by every row: [count, 3, H, W] by row name."""
    generated = {}
    for row in rows:
        generated[row.name] = row.generate(*shown).images_B3HW
        on_row(row.name)
    return generated


def gallery_of(generated: "Mapping[str, Tensor]", shown: Shown, requests: "Requests") -> "Gallery":
    """What `generate_shown` gave, with captions."""
    from swiftmask.evaluate.report import Gallery, picture_uri

    captions = [f"{requests.text(entry)}, seed {seed}" for entry, seed in zip(*shown, strict=True)]
    images = {name: tuple(map(picture_uri, images_B3HW)) for name, images_B3HW in generated.items()}
    return Gallery(captions=tuple(captions), images=images)


def timeline_of(pipeline: "Pipeline", row: "Row", shown: Shown) -> "Timeline":
    """How the gallery's first image fills up under a row."""
    from swiftmask.evaluate.report import TimelineRecorder

    recorder = TimelineRecorder(pipeline.model)
    _watch(pipeline, shown, recorder)
    return recorder.timeline(row.name)


def filmstrip(pipeline: "Pipeline", shown: Shown, num_frames: int = 8) -> bytes:
    """A PNG of the first shown image filling up."""
    import torch

    from swiftmask.evaluate.sheets import canvas_picture, side_by_side

    frames: list[Tensor] = []
    _watch(pipeline, shown, lambda record: frames.append(canvas_picture(pipeline.model, record.after)))
    last = len(frames) - 1
    chosen = sorted({round(index * last / (num_frames - 1)) for index in range(num_frames)})
    return side_by_side([torch.stack([frames[index] for index in chosen])])


def _watch(pipeline: "Pipeline", shown: Shown, on_step: "Callable[[Record], None]") -> None:
    asked, seeds = (part[:1] for part in shown)
    labels: Any
    prompts: Any
    labels, prompts = (asked, None) if pipeline.model.spec.draws == "class" else (None, asked)
    pipeline.generate(labels, prompts=prompts, seeds=seeds, output_type="pt", on_step=on_step)
