"""The HTML report of a comparison: one file, no network, readable on a phone and in the dark.

Built from plain data: texts, PNG bytes and a `QualityReport`.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from swiftmask.evaluate.summary import QualityReport, caption, headings, table

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #fff; --soft: #5a5a60;
  --line: #d5d5da; --box: #f4f4f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf0; --paper: #17171a; --soft: #a6a6ae; --line: #3a3a40; --box: #222226; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { max-width: 44rem; } p.note, figcaption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; border-radius: 4px; background: #fff; }
img.pixels { width: 100%; image-rendering: pixelated; }
code { font-size: .85em; background: var(--box); padding: .1em .3em; border-radius: 3px;
  overflow-wrap: anywhere; }
li { margin: .3rem 0; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A PNG with its heading and caption; `pixels` keeps small pictures crisp when enlarged."""

    heading: str
    png: bytes
    alt: str
    caption: str
    pixels: bool = False


def html_report(title: str, summary: str, report: QualityReport, pictures: Sequence[Picture]) -> str:
    """A whole page: title, what was found, the table, pictures, and the command of every row."""
    commands = "\n".join(
        f"<li>{escape(row.name)}: <code>{escape(row.command)}</code></li>" for row in report.rows
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{escape(summary)}</p>",
            "<h2>Quality and cost</h2>",
            _table(report),
            f'<p class="note">{escape(caption(report))}</p>',
            *(_figure(picture) for picture in pictures),
            "<h2>Commands</h2>",
            f"<p>This page: <code>{escape(report.command)}</code></p><ul>{commands}</ul>",
            "</body></html>\n",
        ]
    )


def _table(report: QualityReport) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings(report))
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for cells in table(report)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    shape = ' class="pixels"' if picture.pixels else ""
    return (
        f"<h2>{escape(picture.heading)}</h2>\n<figure>"
        f'<img{shape} alt="{escape(picture.alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )
