"""HTML of the page: the two canvases with their steps, time and operations. No gradio here."""

import base64
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files
from io import BytesIO

from PIL import Image

from swiftmask.studio.live import Side

_SHOWN = 512
"""Pixels of a canvas's longer side, at most, while it fills."""


def comparison(sides: Sequence[Side]) -> str:
    """The two canvases side by side."""
    return f'<div class="sm-compare">{"".join(map(_side, sides, ("Full model", "Accelerated")))}</div>'


def _side(side: Side, title: str) -> str:
    images = "".join(_canvas(image, side, row) for row, image in enumerate(side.images))
    return (
        f'<section class="sm-side" aria-label="{title}"><header><h3>{title}</h3>'
        f"<p>{escape(steps_text(side.full))}</p></header>"
        f'<div class="sm-canvases sm-{min(len(side.images), 4)}">{images}</div>{_steps(side)}{_numbers(side)}'
        "</section>"
    )


def _canvas(image: Image.Image | None, side: Side, row: int) -> str:
    job = side.prepared.job
    caption = f"{job.rows[row].what}, seed {side.seeds[row]}"
    if image is None:
        return '<div class="sm-canvas sm-blank" role="img" aria-label="nothing decided yet"></div>'
    state = "" if side.cost else f", step {side.num_done} of {job.steps}"
    return f'<img class="sm-canvas" src="{picture_uri(image)}" alt="{escape(caption + state)}">'


def _steps(side: Side) -> str:
    """A mark for each step: coloured by what it runs, filled once it is done."""
    marks = "".join(
        f'<i class="{"full" if full else "fast"}{" done" if place < side.num_done else ""}"></i>'
        for place, full in enumerate(side.full)
    )
    label = f"step {side.num_done} of {len(side.full)}"
    return f'<div class="sm-steps" role="img" aria-label="{label}">{marks}</div>'


def _numbers(side: Side) -> str:
    done, whole = sum(side.flops[: side.num_done]) / 1e9, sum(side.flops) / 1e9
    gflop = f"{done:.3g} <small>of {whole:.3g}</small>" if side.flops else "-"
    return (
        f'<dl class="sm-numbers"><div><dt>Seconds an image</dt><dd>{side.seconds:.2f}</dd></div>'
        f"<div><dt>GFLOP an image</dt><dd>{gflop}</dd></div></dl>"
    )


def steps_text(full: Sequence[bool]) -> str:
    """How many steps there are, and how many of them are full."""
    count = len(full)
    named = f"{count} step{'s' if count != 1 else ''}"
    return f"{named}, all full" if all(full) else f"{named}, {sum(full)} of them full"


def picture_uri(image: Image.Image) -> str:
    """An image as a data URI, small enough to send many times a second."""
    shown = image.copy()
    shown.thumbnail((_SHOWN, _SHOWN), Image.Resampling.BOX)
    file = BytesIO()
    if max(shown.size) <= 128:
        shown.save(file, "PNG", compress_level=1)
        kind = "png"
    else:
        shown.save(file, "JPEG", quality=90, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


@cache
def style() -> str:
    """The style of the page, with the colours of the reports by day and by night."""
    text = (files("swiftmask.evaluate.report") / "colours.css").read_text(encoding="utf-8")
    day, night = (part.rsplit("{", 1)[1].split("}")[0] for part in _blocks(text))
    own = (files("swiftmask.studio") / "page.css").read_text(encoding="utf-8")
    return f":root {{{day}}}\n.dark {{ color-scheme: dark; {night}}}\n{own}"


def _blocks(colours: str) -> tuple[str, str]:
    day, _, night = colours.partition("@media (prefers-color-scheme: dark)")
    return day, night.rsplit("}", 1)[0]
