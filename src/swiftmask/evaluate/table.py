"""A study as text: its tables, and what a reader must know beside them."""

from collections.abc import Sequence

from swiftmask.evaluate.quantities import Spread
from swiftmask.evaluate.summary import Report, RowSummary


def headings(report: Report, group: str = "") -> tuple[str, ...]:
    """Of the columns of `table`; head calls have one where they are not one a step."""
    names = [quantity.heading for quantity in report.quantities if quantity.group == group]
    if group:
        return ("row", *names)
    heads = ("head calls",) if _heads_differ(report) else ()
    return ("row", *names, "same cost, fewer steps", "full calls", *heads, "GFLOP", "ms", "peak MB")


def table(report: Report, group: str = "") -> list[tuple[str, ...]]:
    """The rows as text, under `headings`."""
    return [_cells(row, report, group) for row in report.rows]


def groups(report: Report) -> list[str]:
    """Headings of the further tables."""
    return list(dict.fromkeys(quantity.group for quantity in report.quantities if quantity.group))


def _heads_differ(report: Report) -> bool:
    return any(row.calls.get("head", row.steps) != row.steps for row in report.rows)


def _cells(row: RowSummary, report: Report, group: str) -> tuple[str, ...]:
    keys = [quantity.key for quantity in report.quantities if quantity.group == group]
    values = [text_of(row.values.get(key), report.seeds) for key in keys]
    if group:
        return (row.name, *values)
    heads = (str(row.calls.get("head", row.steps)),) if _heads_differ(report) else ()
    return (
        row.name,
        *values,
        _equal_cost(row, report),
        str(row.calls["backbone"]),
        *heads,
        f"{row.gflop:.2f}",
        f"{row.ms:.1f}",
        f"{row.peak_memory_bytes / 1e6:.0f}",
    )


def text_of(spread: Spread | None, seeds: int) -> str:
    """Nothing for what is not known; one evaluation seed has no spread."""
    if spread is None:
        return ""
    return spread.text(3) if seeds > 1 else f"{spread.mean:.3f}"


def _equal_cost(row: RowSummary, report: Report) -> str:
    keys = [quantity.key for quantity in report.quantities if quantity.compared]
    first, *others = [f"{row.equal_cost[key]:.3f}" if key in row.equal_cost else "" for key in keys]
    return f"{first} ({', '.join(others)})" if first and any(others) else first


def caption(report: Report) -> str:
    """What a reader must know beside the table."""
    compared = [quantity.label for quantity in report.quantities if quantity.compared]
    others = f" ({', '.join(compared[1:])})" if compared[1:] else ""
    seeds = "1 seed" if report.seeds == 1 else f"{report.seeds} seeds (mean ± standard deviation)"
    floors = ", ".join(f"{key} {text_of(spread, report.seeds)}" for key, spread in report.floors.items())
    parts = [
        f"N = {report.N} images per row and evaluation seed, {seeds}.",
        *report.notes,
        *([f"Floor, real images against other real ones: {floors}."] if floors else []),
        f"GFLOP and ms are per image, token decode only, batch {report.batch_size}.",
        f"Same cost, fewer steps: {compared[0]}{others} of "
        "the full model with as many steps as this row's GFLOP pay for; in a row A+B, of A.",
        f"{report.model}, {report.machine}, commit {report.commit}, {report.date}.",
    ]
    return " ".join(part for part in parts if part)


def markdown(report: Report) -> str:
    """The tables with their caption, and the commands."""
    parts = [markdown_cells(headings(report), table(report)), caption(report), *further(report)]
    parts.append(f"All rows: `{report.command}`; one row alone: add `--only ROW`.")
    return "\n\n".join(parts) + "\n"


def further(report: Report) -> list[str]:
    """The further tables, each under its heading."""
    return [
        f"{group}:\n\n{markdown_cells(headings(report, group), table(report, group))}"
        for group in groups(report)
    ]


def markdown_cells(names: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Cells under their headings, without a newline at the end."""
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])
