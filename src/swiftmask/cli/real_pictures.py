"""The real pictures that a report compares with: described by an extractor, or read as statistics."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from swiftmask.cli.progress import counting, note
from swiftmask.cli.report_requests import Requests

if TYPE_CHECKING:
    from torch import Tensor

    from swiftmask.data.images import Decoding
    from swiftmask.evaluate.extractors import Extractor
    from swiftmask.evaluate.pictures import Pictures
    from swiftmask.evaluate.processes import Processes
    from swiftmask.evaluate.quality import Row
    from swiftmask.evaluate.report.folder_study import Reference
    from swiftmask.evaluate.statistics import Moments

DIGITS = 12
"""Of a hash, in the name of a folder."""


def describe_reference(
    path: Path,
    crop: int | None,
    decoding: "Decoding",
    extractor: "Extractor",
    folder: Path,
    *,
    check: "Callable[[Pictures | Moments], None]",
    batch_size: int,
    processes: "Processes",
) -> "Reference":
    """A folder of real pictures, described, or the statistics of a file.

    Args:
        crop: side of the squares that pictures are cropped to; None takes them as they are.
        decoding: how pictures are read. What had to be converted is said, by the first process.
        folder: keeps what was described, and a killed run goes on there.
        check: complains of pictures or statistics that do not fit, before hours of work.
        processes: share the work.

    Errors: what `check` raises.
    """
    from swiftmask.evaluate.feature_store import describe
    from swiftmask.evaluate.pictures import cropped_pictures, folder_pictures
    from swiftmask.evaluate.report.folder_study import Reference
    from swiftmask.evaluate.statistics import read_moments

    if not path.is_dir():
        moments = read_moments(path)
        check(moments)
        return Reference(name=path.name, real=moments, extractor=extractor)
    real = folder_pictures(path, decoding) if crop is None else cropped_pictures(path, crop, decoding)
    check(real)
    for line in real.said if processes.rank == 0 else ():
        note(line)
    own = folder / f"real-{path.resolve().name}-{real.fingerprint[:DIGITS]}"
    with counting(
        "describing real images", real.count / processes.count, unit="images", shown=processes.rank == 0
    ) as advance:
        last = [0]

        def on_progress(done: int, total: int) -> None:
            advance(done - last[0], path.name)
            last[0] = done

        store = describe(
            real,
            extractor,
            own,
            batch_size=batch_size,
            rank=processes.rank,
            num_ranks=processes.count,
            on_progress=on_progress,
        )
    return Reference(name=path.resolve().name, real=store, extractor=extractor)


def check_real(
    real: "Pictures | Moments",
    num_drawn: int,
    row: "Row",
    requests: Requests,
    extractor: "Extractor",
    source: Path,
) -> None:
    """Errors: ValueError for statistics of other features, too few pictures on either side, or real ones of
    another size than the row's.
    """
    from swiftmask.evaluate.extractors import require_same_features
    from swiftmask.evaluate.folder_metrics import MetricSettings, fewest_pictures
    from swiftmask.evaluate.statistics import Moments

    if isinstance(real, Moments):
        require_same_features(real, extractor, _first(row, requests), source=source)
        return
    fewest = fewest_pictures(MetricSettings())
    if min(real.count, num_drawn) < fewest:
        raise ValueError(
            f"these metrics need at least {fewest} images on either side, got --pictures {num_drawn} and "
            f"{real.count} real ones: give more"
        )
    theirs = real.images([0]).shape[-2:]
    ours = _first(row, requests).shape[-2:]
    if theirs != ours:
        raise ValueError(
            f"the model generates {ours[1]}x{ours[0]}, the real images are {theirs[1]}x{theirs[0]}: metrics "
            "need one size; --crop SIDE crops the real ones to squares"
        )


def _first(row: "Row", requests: Requests) -> "Tensor":
    """The first image of a row: [1, 3, H, W]."""
    return row.draw([requests.entries[0]], [0]).images_B3HW
