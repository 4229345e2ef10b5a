"""The frontier plot: quality against cost, a panel for each of the first two compared quantities."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from swiftmask.evaluate.summary import Report, RowSummary

# Okabe and Ito's palette, with a marker each: told apart without colour, too.
_STYLES = (("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#E69F00", "P"))
_VANILLA = ("#222222", "o")
_UNNUMBERED = ("reuse", "extrapolation-1", "extrapolation-2")
"""Measured where the shortcut is: one set of numbers will do."""
_ROOM = (0.045, 0.09)
"""What a number takes of a panel, across and up."""
_LEGEND_LETTERS = 125
"""What stands beside each other below the panels, a marker with its gaps being worth 6."""


def frontier_png(report: Report) -> bytes:
    """The plot as PNG; error bars are the spread over evaluation seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    shown = [quantity for quantity in report.quantities if quantity.compared][:2]
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, quantity in zip(panels, shown, strict=True):
        floor = report.floors.get(quantity.key)
        if floor is not None and floor.mean > 0:
            axes.set_yscale("log")
            _ticks_at_1_2_5(axes.yaxis)
        _draw_panel(axes, report, quantity.key)
        direction = "higher" if quantity.higher_is_better else "lower"
        axes.set_ylabel(f"{quantity.label} (N = {report.N}), {direction} is better")
        if floor is not None:
            _draw_floor(axes, floor.mean)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = legend_columns(labels)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    figure.suptitle(f"{report.model}: quality against cost (numbers: {_numbers(report)})", fontsize=11)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_floor(axes: Any, floor: float) -> None:
    axes.axhline(floor, color="#777777", linestyle=":", linewidth=1.5)
    axes.annotate(
        "floor: real against real",
        (0.99, floor),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color="#555555",
    )


def legend_columns(labels: Sequence[str]) -> int:
    """How many columns of a legend fit beside each other, 6 at most."""
    for count in range(6, 1, -1):
        columns = [column for column in np.array_split(list(labels), count) if len(column)]
        if sum(6 + max(map(len, column)) for column in columns) <= _LEGEND_LETTERS:
            return count
    return 1


def _draw_panel(axes: Any, report: Report, value: str) -> None:
    names = list(dict.fromkeys(row.series for row in report.rows))
    styles = {name: style_of(index) for index, name in enumerate(name for name in names if name != "vanilla")}
    axes.set_xscale("log")
    for name in names:
        _draw_series(axes, name, _rows_of(report, name), value, styles.get(name, _VANILLA))
    ticks = sorted({_rounded(row.gflop) for row in _rows_of(report, "vanilla")})
    if len(ticks) > 2:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    else:
        _ticks_at_1_2_5(axes.xaxis)
    taken: list[tuple[str, float, float]] = []
    for name in names:
        if name not in _UNNUMBERED:
            _number_series(axes, name, _rows_of(report, name), value, styles.get(name, _VANILLA)[0], taken)
    axes.set_xlabel("GFLOP per image (log scale)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _rows_of(report: Report, series: str) -> list[RowSummary]:
    """Cheapest first."""
    rows = [row for row in report.rows if row.series == series]
    return sorted(rows, key=lambda row: row.gflop)


def _ticks_at_1_2_5(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def style_of(index: int) -> tuple[str, str]:
    """Colour and marker of a method; where colours begin again, markers are one further."""
    count = len(_STYLES)
    return _STYLES[index % count][0], _STYLES[(index + index // count) % count][1]


def _draw_series(
    axes: Any, name: str, rows: Sequence[RowSummary], value: str, style: tuple[str, str]
) -> None:
    spreads = [row.values[value] for row in rows]
    axes.errorbar(
        [row.gflop for row in rows],
        [spread.mean for spread in spreads],
        [spread.spread for spread in spreads],
        color=style[0],
        marker=style[1],
        markersize=6,
        linestyle="-" if name == "vanilla" else "none",
        linewidth=1.5,
        capsize=2.5,
        label="full model, fewer steps" if name == "vanilla" else name,
    )


def _number_series(
    axes: Any,
    name: str,
    rows: Sequence[RowSummary],
    value: str,
    colour: str,
    taken: list[tuple[str, float, float]],
) -> None:
    """Numbers beside the points, but where another point's number already stands, or the same one above or
    below.

    Args:
        taken: numbers so far with their places, as shares of the panel; grows.
    """
    for row in rows:
        number = row.name.removeprefix(f"{name}-")
        point = (row.gflop, row.values[value].mean)
        across, up = axes.transAxes.inverted().transform(axes.transData.transform(point))
        near = [(other, y) for other, x, y in taken if abs(across - x) < _ROOM[0]]
        if any(other == number or abs(up - y) < _ROOM[1] for other, y in near):
            continue
        taken.append((number, across, up))
        axes.annotate(
            number,
            point,
            xytext=(4, -11) if name == "vanilla" else (-3, 9),
            rotation=0 if name == "vanilla" else 60,
            textcoords="offset points",
            fontsize=8,
            color=colour,
        )


def _numbers(report: Report) -> str:
    """What the numbers beside the points say."""
    if any("x" in row.name.removeprefix(f"{row.series}-") for row in report.rows):
        return "steps, or steps x denoising steps"
    return "steps, or steps:full steps"


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
