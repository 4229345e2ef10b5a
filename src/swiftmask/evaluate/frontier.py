"""The frontier plot: quality against cost, judge score above and fd_scenes below it."""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from swiftmask.evaluate.summary import QualityReport, RowSummary

# Okabe and Ito's palette, with a marker each: told apart without colour, too.
_STYLES = (("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#E69F00", "P"))
_VANILLA = ("#222222", "o")
_UNNUMBERED = ("reuse", "extrapolation-1", "extrapolation-2")
"""Measured where the shortcut is: one set of numbers will do."""


def frontier_png(report: QualityReport) -> bytes:
    """The plot as PNG; error bars are the spread over evaluation seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.3), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes, value, label in ((left, "score", "judge score, higher is better"), (right, "fd_scenes", "")):
        _draw_panel(axes, report, value)
        axes.set_ylabel(label or f"fd_scenes (N = {report.N}), lower is better")
    right.axhline(report.floor.mean, color="#777777", linestyle=":", linewidth=1.5)
    right.annotate(
        "floor: real against real",
        (0.99, report.floor.mean),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color="#555555",
    )
    if report.floor.mean > 0:
        right.set_yscale("log")
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_formatter("{x:g}")
    left.legend(fontsize=9, frameon=False, loc="lower right")
    figure.suptitle(f"{report.model}: quality against cost (numbers: {_numbers(report)})", fontsize=11)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def save_frontier(report: QualityReport, path: Path) -> None:
    """`frontier_png` in a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(frontier_png(report))
    os.replace(partial, path)


def _draw_panel(axes: Any, report: QualityReport, value: str) -> None:
    names = list(dict.fromkeys(row.series for row in report.rows))
    styles = dict(zip([name for name in names if name != "vanilla"], _STYLES * len(names), strict=False))
    for name in names:
        rows = sorted((r for r in report.rows if r.series == name), key=lambda row: row.gflop_per_picture)
        _draw_series(axes, name, rows, value, styles.get(name, _VANILLA))
    axes.set_xscale("log")
    ticks = sorted({_rounded(row.gflop_per_picture) for row in report.rows if row.series == "vanilla"})
    if ticks:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel("GFLOP per picture (log scale)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_series(
    axes: Any, name: str, rows: Sequence[RowSummary], value: str, style: tuple[str, str]
) -> None:
    costs = [row.gflop_per_picture for row in rows]
    spreads = [getattr(row, value) for row in rows]
    label = "full model, fewer steps" if name == "vanilla" else name
    axes.errorbar(
        costs,
        [spread.mean for spread in spreads],
        [spread.spread for spread in spreads],
        color=style[0],
        marker=style[1],
        markersize=6,
        linestyle="-" if name == "vanilla" else "none",
        linewidth=1.5,
        capsize=2.5,
        label=label,
    )
    if name in _UNNUMBERED:
        return
    for row, cost, spread in zip(rows, costs, spreads, strict=True):
        axes.annotate(
            row.name.removeprefix(f"{name}-"),
            (cost, spread.mean),
            xytext=(4, -11) if name == "vanilla" else (-3, 9),
            rotation=0 if name == "vanilla" else 60,
            textcoords="offset points",
            fontsize=8,
            color=style[0],
        )


def _numbers(report: QualityReport) -> str:
    """What the numbers beside the points say."""
    if any("x" in row.name.removeprefix(f"{row.series}-") for row in report.rows):
        return "steps, or steps x denoising steps"
    return "steps, or steps:full steps"


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
