"""One table across models and methods, from the files in `results/`: what each bought, at what quality.

    python benchmarks/methods_table.py            # Markdown, as docs/methods.md shows it
    python benchmarks/methods_table.py --short    # the rows and columns of the README

The last column is what each paper reports of its own models, with its own metrics and machines. Nothing in
it was measured here, and no other column can be compared with it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from swiftmask.evaluate.summary import RowSummary, read_report
from swiftmask.evaluate.table import markdown_cells

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row of the full model, a row of a method, and the paper's own words.

    Attributes:
        table: folder of the result file below `results/`; "" for a model's main table.
        short: whether the README shows it.
    """

    method: str
    model: str
    full: str
    fast: str
    paper: str = ""
    table: str = ""
    short: bool = True


_SHORTCUT_PAPER = (
    "MaskGIT-512, ImageNet: FID 6.84 at 32 steps of which 12 full, 2.28 times faster than 32 full ones (8.08)"
)
_MARVAL_PAPER = "ImageNet 256, MAR-B: FID 3.06 for 2.60, 0.61 s for 20.10 s an image at batch 1"

ENTRIES = (
    Entry(
        method="MIGM-Shortcut",
        model="maskgit-scenes",
        full="vanilla-16",
        fast="shortcut-16:6",
        paper=_SHORTCUT_PAPER,
    ),
    Entry(
        method="feature reuse",
        model="maskgit-scenes",
        full="vanilla-16",
        fast="reuse-16:6",
        short=False,
    ),
    Entry(
        method="no guidance",
        model="maskgit-scenes",
        full="vanilla-16",
        fast="unguided-16",
        table="guidance",
    ),
    Entry(
        method="MIGM-Shortcut, no guidance",
        model="maskgit-scenes",
        full="vanilla-16",
        fast="unguided+shortcut-16:6",
        table="guidance",
        short=False,
    ),
    Entry(
        method="MIGM-Shortcut",
        model="dimoo-scenes",
        full="vanilla-24",
        fast="shortcut-16:6",
        paper=(
            "Lumina-DiMOO at 1024 px: 64 steps of which 11 full, 4.91 times faster, "
            "ImageReward 0.868 for 0.913, CLIP score 34.39 for 34.46"
        ),
    ),
    Entry(
        method="ML-Cache",
        model="dimoo-scenes",
        full="vanilla-24",
        fast="ml-cache-16:6",
        paper=(
            "Lumina-DiMOO at 1024 px, as the shortcut's paper has it: 2.2 times faster, ImageReward 0.896 "
            "for 0.913"
        ),
    ),
    Entry(
        method="first-order extrapolation",
        model="dimoo-scenes",
        full="vanilla-24",
        fast="extrapolation-1-16:6",
    ),
    Entry(
        method="10 DDIM steps",
        model="mar-scenes",
        full="vanilla-16",
        fast="ddim-16x10",
    ),
    Entry(
        method="MARVAL",
        model="mar-scenes",
        full="vanilla-16",
        fast="mar-scenes-marval-16",
        paper=_MARVAL_PAPER,
        short=False,
    ),
    Entry(
        method="MARVAL-RL",
        model="mar-scenes",
        full="vanilla-16",
        fast="mar-scenes-marval-rl-8",
        paper="ImageNet 256, the H size: ImageReward -0.107 to -0.064, CLIP score 29.33 to 29.78",
    ),
    Entry(
        method="Speed-RL",
        model="meissonic-scenes",
        full="vanilla-24",
        fast="meissonic-scenes-speed-rl-8",
        paper="up to three times faster with comparable quality on Meissonic (1B)",
    ),
)

_HEADINGS = (
    "method",
    "model",
    "baseline",
    "accelerated",
    "judge ↑, baseline",
    "judge ↑, accelerated",
    "judge ↑, fewer steps at equal GFLOP",
    "FD ↓, baseline",
    "FD ↓, accelerated",
    "FD ↓, fewer steps at equal GFLOP",
    "GFLOP, times fewer",
    "ms, times fewer",
    "its paper, on its own models",
)
_NUM_SHORT = len(_HEADINGS) - 2
"""Columns of the short table: not the times, which vary with the machine, and not the papers."""


def table(*, short: bool = False) -> str:
    """The whole table in Markdown, or the README's rows and columns of it."""
    cells = []
    for entry in ENTRIES:
        if short and not entry.short:
            continue
        report = read_report(RESULTS / entry.table / entry.model / "report.json")
        rows = {row.name: row for row in report.rows}
        cells.append(_cells(entry, rows[entry.full], rows[entry.fast]))
    if not short:
        return markdown_cells(_HEADINGS, cells)
    return markdown_cells(_HEADINGS[:_NUM_SHORT], [row[:_NUM_SHORT] for row in cells])


def _cells(entry: Entry, full: RowSummary, fast: RowSummary) -> tuple[str, ...]:
    equal_score, equal_distance = (fast.equal_cost.get(key) for key in ("score", "fd_scenes"))
    return (
        entry.method,
        entry.model,
        _steps(entry.full),
        _steps(entry.fast),
        f"{full.values['score'].mean:.3f}",
        f"{fast.values['score'].mean:.3f}",
        "" if equal_score is None else f"{equal_score:.3f}",
        f"{full.values['fd_scenes'].mean:.0f}",
        f"{fast.values['fd_scenes'].mean:.0f}",
        "" if equal_distance is None else f"{equal_distance:.0f}",
        f"{full.gflop / fast.gflop:.1f}",
        f"{full.ms / fast.ms:.1f}",
        entry.paper,
    )


def _steps(row: str) -> str:
    """The decode steps that a row's name states: "shortcut-16:6" is "16 steps, 6 full"."""
    steps = row.rsplit("-", 1)[-1]
    decode, colon, full = steps.partition(":")
    return f"{decode} steps, {full} full" if colon else f"{steps.partition('x')[0]} steps"


if __name__ == "__main__":
    print(table(short="--short" in sys.argv[1:]))
