"""What a run measures at every checkpoint on what it does not train on, and the best checkpoint so far.

`held_out.jsonl` in a run's folder has one line a checkpoint: the step, then losses and mean scores of the
averaged weights. The first quantity of a line decides which checkpoint is the best, whose weights are in
`best`.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swiftmask.core.settings import parse_json
from swiftmask.core.writing import write_bytes
from swiftmask.methods.speed_rl.scorers import Judge, Prompts, Reward, scores_of

LOG_NAME = "held_out.jsonl"
LOSS = "loss"
"""Of all quantities, the one whose lowest value is the best; of scores it is the highest."""

Line = dict[str, Any]
Save = Callable[[Path, dict[str, object]], None]
"""`save(folder, facts)`: writes the weights of this checkpoint; `facts` are for their provenance."""


def keep_best(folder: Path, step: int, measured: Mapping[str, float], save: Save) -> None:
    """Log a checkpoint, and save it to `folder/best` if it is the best so far.

    A run that was killed comes to a step again: its earlier line of that step, and those behind it, are
    replaced.

    Args:
        measured: quantities by name; the first decides. One that is not finite is logged as null.
    """
    if not measured:
        return
    path = folder / LOG_NAME
    now = {"step": step} | {name: x if math.isfinite(x) else None for name, x in measured.items()}
    lines = [*(line for line in _lines(path) if line["step"] < step), now]
    write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    if _best(lines) is now:
        save(folder / "best", {"checkpoint": now})


def best_of(folder: Path) -> tuple[Path, str] | None:
    """Where the best checkpoint of a run is, and what it scored, as in "step 40, clip 0.31"; None if there is
    none.
    """
    line = _best(_lines(folder / LOG_NAME))
    if line is None or not (folder / "best").is_dir():
        return None
    name = _deciding(line)
    return folder / "best", f"step {line['step']:,}, {name} {line[name]:.4g}"


def mean_scores(
    scorers: Sequence[Judge | Reward], pictures: Iterable[tuple[Tensor, Prompts]]
) -> dict[str, float]:
    """The mean of each scorer over images [B, 3, H, W] in [0, 1], given in parts with what they show.

    Images that a scorer does not apply to do not count; a scorer that applies to none gives NaN.
    """
    if not scorers:
        return {}
    scores_MX = torch.cat([scores_of(scorers, images, shown) for images, shown in pictures], dim=1)
    return {scorer.name: float(mean) for scorer, mean in zip(scorers, scores_MX.nanmean(1), strict=True)}


def spread(count: int, length: int) -> list[int]:
    """At most `count` places, spread evenly over a list of that length."""
    count = min(count, length)
    return [place * length // count for place in range(count)]


def _lines(path: Path) -> list[Line]:
    text = path.read_text() if path.is_file() else ""
    return [parse_json(line, source=str(path)) for line in text.splitlines() if line.strip()]


def _deciding(line: Line) -> str:
    """The name of the first quantity."""
    return next(name for name in line if name != "step")


def _best(lines: Sequence[Line]) -> Line | None:
    """The first of the best."""
    if not lines:
        return None
    name = _deciding(lines[-1])
    known = [line for line in lines if line.get(name) is not None]
    better = min if name == LOSS else max
    return better(known, key=lambda line: line[name], default=None)
