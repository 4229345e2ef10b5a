"""What a table says, in a few sentences, and the section of a model card.

Claims go no further than the numbers: a difference within the spread is none, one evaluation seed shows none,
and where every row is far from the real images no row is called better.
"""

import math

from swiftmask.evaluate.quantities import Quantity
from swiftmask.evaluate.summary import VANILLA, Report, RowSummary, costs_half
from swiftmask.evaluate.table import markdown

_FAR = 10.0
"""A distance so many times its floor or more says that images are no real ones; not which are better."""

_OUTSIDE = 0.02
"""The same where so small a share of the generated images lies among the real ones, or less."""


def meaningless(report: Report) -> str:
    """Why differences between rows mean nothing yet, or nothing."""
    key = report.quantities[0].key
    if report.quantities[0].higher_is_better:
        return ""
    least = min(row.values[key].mean for row in report.rows)
    floor = report.floors.get(key)
    if floor is not None and floor.mean > 0 and least > _FAR * floor.mean:
        return (
            f"The {report.quantities[0].label} of every row is at least {least / floor.mean:.0f} times that "
            f"of real images ({least:.4g} against {floor.mean:.4g})"
        )
    precision = next((q.key for q in report.quantities if q.key.startswith("precision")), None)
    if precision and max(row.values[precision].mean for row in report.rows) <= _OUTSIDE:
        return f"At most {100 * _OUTSIDE:.0f} % of the images of any row lie among the real ones (precision)"
    return ""


def findings(report: Report) -> str:
    """What the table says about half the cost of the full model."""
    full, quantity = report.full, report.quantities[0]
    if why := meaningless(report):
        return f"{why}: differences between rows say nothing about quality. Train the model further first."
    if full is None:
        return f"{len(report.rows)} rows of {report.model}, without the full model."
    text = (
        f"The full model with {full.steps} steps costs {full.gflop:.3g} GFLOP per image; its "
        f"{quantity.label} is {_value(full, quantity)}. "
    )
    affordable = [row for row in report.rows if costs_half(row, full)]
    fast = report.best([row for row in affordable if row.accelerated])
    other = report.best([row for row in affordable if row.resampled])
    sentences = [
        text + ("No accelerated row costs half of that or less." if fast is None else ""),
        *([] if fast is None else _accelerated(fast, full, report)),
        *([] if other is None else [_resampled(other, fast, report)]),
    ]
    return " ".join(sentence.strip() for sentence in sentences)


def _accelerated(fast: RowSummary, full: RowSummary, report: Report) -> list[str]:
    """The best accelerated row, beside what fewer steps alone give."""
    quantity = report.quantities[0]
    affordable = [row for row in report.rows if costs_half(row, full)]
    fewer = report.best([row for row in affordable if row.series == VANILLA])
    text = (
        f"At half that cost or less, the best accelerated row is {fast.name} with "
        f"{_value(fast, quantity)} at {fast.gflop:.3g} GFLOP ({full.gflop / fast.gflop:.1f} times fewer)"
    )
    if fast.ms > 0.94 * full.ms:
        text += f", but no faster on this machine ({fast.ms:.3g} ms against {full.ms:.3g} ms)"
    if fewer is None:
        return [text + "; no row of fewer steps alone is as cheap."]
    text += f"; {_verdict(fast, fewer, report)} the best of fewer steps alone, {fewer.name} with "
    text += f"{_value(fewer, quantity)}."
    if quantity.key not in fast.equal_cost:
        return [text]
    equal = fast.equal_cost[quantity.key]
    return [text, f"Fewer steps alone at the cost of {fast.name} would have {equal:.3g} (interpolated)."]


def _resampled(other: RowSummary, fast: RowSummary | None, report: Report) -> str:
    """The best row of the full model with other sampling, which costs no training."""
    text = (
        f"With other sampling alone, {other.name} has {_value(other, report.quantities[0])} at "
        f"{other.gflop:.3g} GFLOP"
    )
    return f"{text}." if fast is None else f"{text}; {_verdict(other, fast, report)} {fast.name}."


def model_card(report: Report) -> str:
    """The section "quality and cost" of a model card, in Markdown."""
    return f"## Quality and cost of {report.model}\n\n{findings(report)}\n\n{markdown(report)}"


def _verdict(fast: RowSummary, fewer: RowSummary, report: Report) -> str:
    """A difference within the larger spread is none; one evaluation seed has no spread, and shows none."""
    quantity = report.quantities[0]
    ours, theirs = fast.values[quantity.key], fewer.values[quantity.key]
    if report.seeds == 1:
        return "no difference that one evaluation seed can show from"
    if abs(ours.mean - theirs.mean) <= max(ours.spread, theirs.spread):
        return "no difference beyond the spread from"
    return "it beats" if quantity.better(ours.mean, theirs.mean) else "it does not beat"


def _value(row: RowSummary, quantity: Quantity) -> str:
    found = row.values[quantity.key]
    if not found.spread or not found.mean:
        return f"{found.mean:.3g}"
    return found.text(max(0, 2 - math.floor(math.log10(abs(found.mean)))))
