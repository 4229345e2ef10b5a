"""The page: one file with its style, its scripts and its images inside, which asks the network for nothing.

Texts, the table and the commands are HTML and readable without scripts. What can be moved (plot, images,
timeline) is drawn from one JSON block by plot.js, pictures.js and timeline.js.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from string import Template

from swiftmask.evaluate.report.findings import meaningless, model_card
from swiftmask.evaluate.report.gallery import Gallery
from swiftmask.evaluate.report.timeline import Timeline
from swiftmask.evaluate.summary import Report
from swiftmask.evaluate.table import caption, groups, headings, table

_SCRIPTS = ("base.js", "scales.js", "plot.js", "pictures.js", "timeline.js", "copy.js")
_SAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
"""Inside a script element nothing may look like markup, whatever a model is called."""


def html_report(
    title: str,
    summary: str,
    report: Report,
    *,
    gallery: Gallery | None = None,
    timelines: Sequence[Timeline] = (),
) -> str:
    """The whole page.

    Args:
        summary: what was found, in a few sentences.
        gallery: images of the rows at equal seeds, compared with a slider.
        timelines: how one image of some rows came about.
    """
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        summary=escape(summary),
        style=_asset("colours.css") + _asset("page.css"),
        data=json.dumps(_data(report, gallery, timelines)).translate(_SAFE),
        script="\n".join(_asset(name) for name in _SCRIPTS),
        table=_table(headings(report), table(report)),
        caption=escape(caption(report)),
        further="\n".join(_further(report, group) for group in groups(report)),
        command=escape(report.command),
        commands="\n".join(
            _command(row.name, command)
            for row in report.rows
            if (command := report.command_of(row)) != report.command
        ),
    )


def _asset(name: str) -> str:
    return (files("swiftmask.evaluate.report") / name).read_text(encoding="utf-8")


def _data(report: Report, gallery: Gallery | None, timelines: Sequence[Timeline]) -> dict[str, object]:
    """What the scripts draw: quantities that every row has, and the rows."""
    picked, full = report.picked(), report.full
    quantities = [
        asdict(quantity)
        | {"floor": report.floors[quantity.key].mean if quantity.key in report.floors else None}
        for quantity in report.quantities
        if not quantity.group and all(quantity.key in row.values for row in report.rows)
    ]
    return {
        "quantities": quantities,
        "rows": [asdict(row) for row in report.rows],
        "seeds": report.seeds,
        "meaningless": meaningless(report),
        "full": None if full is None else full.name,
        "picked": None if picked is None else picked.name,
        "gallery": None if gallery is None else asdict(gallery),
        "timelines": [_timeline(timeline) for timeline in timelines],
        "markdown": model_card(report),
    }


def _timeline(timeline: Timeline) -> dict[str, object]:
    moments = [
        asdict(moment)
        | {"confidence": moment.confidence and base64.b64encode(moment.confidence).decode("ascii")}
        for moment in timeline.moments
    ]
    return {"row": timeline.row, "grid": timeline.grid, "moments": moments}


def _table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    return f"<thead><tr>{head}</tr></thead>\n<tbody>\n{_rows(cells)}\n</tbody>"


def _rows(cells: Sequence[Sequence[str]]) -> str:
    lines = []
    for first, *rest in cells:
        texts = "".join(f"<td>{escape(text)}</td>" for text in rest)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{texts}</tr>')
    return "\n".join(lines)


def _further(report: Report, group: str) -> str:
    mark = group.lower().replace(" ", "-")
    return (
        f'<section aria-labelledby="{mark}"><h2 id="{mark}">{escape(group)}</h2>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{mark}"><table>\n'
        f"{_table(headings(report, group), table(report, group))}\n</table></div></section>"
    )


def _command(name: str, command: str) -> str:
    label = escape(f"Copy the command of {name}")
    return (
        f'<li><span class="name">{escape(name)}</span> <code>{escape(command)}</code> <button type="button" '
        f'class="copy" data-copy="before" aria-label="{label}" hidden>Copy</button></li>'
    )
