"""What a report page shows of the rows: pictures at equal seeds, and how one of them came about."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from swiftmask.cli.report_requests import Requests

if TYPE_CHECKING:
    from torch import Tensor

    from swiftmask.core.types import Record
    from swiftmask.evaluate.quality import Row
    from swiftmask.evaluate.report import Gallery, Timeline
    from swiftmask.pipeline import Pipeline, Result


def draw_shown(
    rows: "Sequence[Row]",
    requests: Requests,
    count: int,
    on_row: Callable[[str], None] = lambda name: None,
) -> "dict[str, Tensor]":
    """The same `count` pictures by every row, with seeds 0, 1, 2, ... or those of the requests:
    [count, 3, H, W] by row name.
    """
    asked = [requests.entries[index] for index in requests.shown(count)]
    seeds = [requests.seed(index, place) for place, index in enumerate(requests.shown(count))]
    drawn = {}
    for row in rows:
        drawn[row.name] = row.draw(asked, seeds).images_B3HW
        on_row(row.name)
    return drawn


def gallery_of(drawn: "Mapping[str, Tensor]", requests: Requests) -> "Gallery":
    """What `draw_shown` drew, with captions."""
    from swiftmask.evaluate.report import Gallery, picture_uri

    count = max(map(len, drawn.values()))
    shown = enumerate(requests.shown(count))
    captions = [f"{requests.names[i]}, seed {requests.seed(i, place)}" for place, i in shown]
    images = {name: tuple(map(picture_uri, images_B3HW)) for name, images_B3HW in drawn.items()}
    return Gallery(captions=tuple(captions), images=images)


def draw_timeline(pipeline: "Pipeline", row: "Row", requests: Requests) -> "Timeline":
    """How the gallery's first picture fills up under a row."""
    from swiftmask.evaluate.report import TimelineRecorder

    recorder = TimelineRecorder(pipeline.model)
    draw_first(pipeline, row.steps, requests, recorder)
    return recorder.timeline(row.name)


def draw_first(
    pipeline: "Pipeline",
    steps: int,
    requests: Requests,
    on_step: "Callable[[Record], None] | None" = None,
) -> "Result":
    """The first picture that is shown, as `draw_shown` draws it."""
    index = requests.shown(1)[0]
    asked = [requests.entries[index]]
    labels, prompts = (asked, None) if pipeline.model.spec.draws == "class" else (None, asked)
    return pipeline.generate(
        labels,
        prompts=prompts,
        seeds=[requests.seed(index, 0)],
        steps=steps,
        output_type="pt",
        on_step=on_step,
    )
