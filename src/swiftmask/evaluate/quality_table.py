"""A study as text: its table, what a reader must know beside it, and what it found by kind of fact."""

from collections.abc import Sequence
from dataclasses import dataclass

from swiftmask.data.scenes import FACT_KINDS
from swiftmask.evaluate.summary import QualityReport, RowSummary

_HEADINGS = (
    "row",
    "judge score ↑",
    "fd_scenes ↓",
    "same cost, fewer steps",
    "tokens kept",
    "full calls",
    "GFLOP",
    "ms",
    "peak MB",
)
_HEAD_CALLS_AT = 1 + _HEADINGS.index("full calls")
_PROMPT_HEADINGS = ("training reward ↑", "diversity ↑")


def headings(report: QualityReport) -> tuple[str, ...]:
    """Of the columns of `table`; head calls have one where they are not one a step, and what is measured of
    prompts alone comes last.
    """
    last = _PROMPT_HEADINGS if _has_prompts(report) else ()
    if not _heads_differ(report):
        return (*_HEADINGS, *last)
    return (*_HEADINGS[:_HEAD_CALLS_AT], "head calls", *_HEADINGS[_HEAD_CALLS_AT:], *last)


def table(report: QualityReport) -> list[tuple[str, ...]]:
    """The report's rows as text, under `headings`."""
    shown = [_cells(row) for row in report.rows]
    if _has_prompts(report):
        shown = [(*c, *_prompt_cells(row)) for row, c in zip(report.rows, shown, strict=True)]
    if not _heads_differ(report):
        return shown
    pairs = zip(report.rows, shown, strict=True)
    return [(*c[:_HEAD_CALLS_AT], str(row.calls["head"]), *c[_HEAD_CALLS_AT:]) for row, c in pairs]


def _heads_differ(report: QualityReport) -> bool:
    return any(row.calls.get("head", row.steps) != row.steps for row in report.rows)


def _has_prompts(report: QualityReport) -> bool:
    return any(row.diversity is not None for row in report.rows)


def _prompt_cells(row: RowSummary) -> tuple[str, ...]:
    return tuple("" if spread is None else spread.text(3) for spread in (row.training_reward, row.diversity))


def _cells(row: RowSummary) -> tuple[str, ...]:
    return (
        row.name,
        row.score.text(3),
        row.fd_scenes.text(3),
        _equal_cost(row),
        "" if row.agreement is None else f"{row.agreement.mean:.2f}",
        str(row.calls["backbone"]),
        f"{row.gflop_per_picture:.2f}",
        f"{row.ms_per_picture:.1f}",
        f"{row.peak_memory_bytes / 1e6:.0f}",
    )


@dataclass(frozen=True, slots=True)
class FactTable:
    """A second table: the same rows, by kind of fact."""

    headings: tuple[str, ...]
    cells: list[tuple[str, ...]]
    caption: str = (
        "Of the facts of each kind that captions or classes state, the share that the judge finds in the "
        "images (mean ± standard deviation over evaluation seeds)."
    )

    def markdown(self) -> str:
        return f"{markdown_cells(self.headings, self.cells)}\n\n{self.caption}"


def fact_table(report: QualityReport) -> FactTable | None:
    """The kinds that every row knows of; None if there are none, as in reports of an earlier version."""
    known = [row.by_kind or {} for row in report.rows]
    kinds = [kind for kind in FACT_KINDS if all(kind in row for row in known)]
    cells = [
        (row.name, *(found[kind].text(3) for kind in kinds))
        for row, found in zip(report.rows, known, strict=True)
    ]
    return FactTable(("row", *kinds), cells) if kinds else None


def caption(report: QualityReport) -> str:
    """What a reader must know beside the table."""
    of_prompts = (
        "Training reward: the same score by the reader that training may use. Diversity: how much the "
        "images of one prompt differ (1 - cosine of the judge's features, mean over pairs and prompts). "
    )
    return (
        f"N = {report.N} images per row and evaluation seed, {report.seeds} seeds "
        "(mean ± standard deviation); fd_scenes of real images to other real ones at the same N "
        f"(the floor): {report.floor.text(3)}. GFLOP and ms are per image, token decode only, "
        f"batch {report.batch_size}. Same cost, fewer steps: what the full model scores (and its "
        "fd_scenes) with as many steps as this row's GFLOP pay for; in a row A+B, what A scores. "
        "Tokens kept: share equal to the "
        f"full model's at the same steps. {of_prompts if _has_prompts(report) else ''}"
        f"{report.model}, {report.machine}, commit {report.commit}, "
        f"{report.date}."
    )


def markdown(report: QualityReport) -> str:
    """The table with its caption, and the command of every row."""
    facts = fact_table(report)
    return markdown_table(
        headings(report),
        table(report),
        caption=caption(report),
        more="" if facts is None else facts.markdown(),
        command=report.command,
        commands=[(row.name, row.command) for row in report.rows],
    )


def markdown_table(
    names: Sequence[str],
    cells: Sequence[Sequence[str]],
    *,
    caption: str,
    command: str,
    commands: Sequence[tuple[str, str]],
    more: str = "",
) -> str:
    """A table under its headings, its caption, the command of all rows and of each (by row name).

    Args:
        more: what stands between the caption and the commands, if anything.
    """
    alone = "\n".join(f"* {name}: `{own}`" for name, own in commands)
    parts = (markdown_cells(names, cells), caption, more, f"All rows: `{command}`", alone)
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_cells(names: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Cells under their headings, without a newline at the end."""
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])


def _equal_cost(row: RowSummary) -> str:
    if row.equal_cost_score is None or row.equal_cost_fd_scenes is None:
        return ""
    return f"{row.equal_cost_score:.3f} ({row.equal_cost_fd_scenes:.3f})"
