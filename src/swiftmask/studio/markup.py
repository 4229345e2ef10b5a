"""HTML of the page: canvases, costs, the slider between two images, the gallery. No gradio here."""

import base64
from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files
from io import BytesIO

from PIL import Image

from swiftmask.studio.gallery import Entry, GalleryImage
from swiftmask.studio.live import Side
from swiftmask.studio.session import Line, times_fewer

_SHOWN = 512
"""Pixels of a canvas's longer side, at most, while it fills."""

_LOSSLESS = 128
"""Pixels up to which it is sent as PNG then."""


def comparison(sides: Sequence[Side], titles: Sequence[str]) -> str:
    """The two canvases side by side."""
    return f'<div class="sm-compare">{"".join(map(_side, sides, titles))}</div>'


def _side(side: Side, title: str) -> str:
    images = "".join(_canvas(image, side, row) for row, image in enumerate(side.images))
    return (
        f'<section class="sm-side" aria-label="{escape(title)}"><header><h3>{escape(title)}</h3>'
        f"<p>{_state(side)}</p></header>"
        f'<div class="sm-canvases sm-{min(len(side.images), 4)}">{images}</div>{_steps(side)}{_numbers(side)}'
        "</section>"
    )


def _state(side: Side) -> str:
    if side.cost is not None:
        return "finished"
    if side.prepared.job.started is None:
        return "waits for the model"
    return f"step {min(side.num_done + 1, len(side.full))} of {len(side.full)}"


def _canvas(image: Image.Image | None, side: Side, row: int) -> str:
    if image is None:
        return '<div class="sm-canvas" role="img" aria-label="nothing decided yet"></div>'
    what = side.prepared.job.rows[row].what
    caption = f"{getattr(what, 'text', what)}, seed {side.seeds[row]}"
    state = "" if side.cost else f", after step {side.num_done}"
    return f'<img class="sm-canvas" src="{image_uri(image)}" alt="{escape(caption + state)}">'


def _steps(side: Side) -> str:
    """A mark for each step: coloured by what it runs, filled once it is done."""
    marks = "".join(
        f'<i class="{"full" if full else "fast"}{" done" if place < side.num_done else ""}"></i>'
        for place, full in enumerate(side.full)
    )
    label = f"{side.num_done} of {len(side.full)} steps are done, {sum(side.full)} of them are full"
    return f'<div class="sm-steps" role="img" aria-label="{label}">{marks}</div>'


def _numbers(side: Side) -> str:
    done, whole = sum(side.flops[: side.num_done]) / 1e9, sum(side.flops) / 1e9
    gflop = f"{done:.3g} <small>of {whole:.3g}</small>" if side.flops else "<small>being counted</small>"
    return (
        f'<dl class="sm-numbers"><div><dt>Seconds an image</dt><dd>{side.seconds:.2f}</dd></div>'
        f"<div><dt>GFLOP an image</dt><dd>{gflop}</dd></div></dl>"
    )


KEY = (
    '<p class="sm-key"><span><i class="full"></i>full step: the backbone runs</span>'
    '<span><i class="fast"></i>cheap step: the accelerator runs instead</span></p>'
)


def blank() -> str:
    """Where the canvases will be."""
    return '<p class="sm-hint">Both models start from the same seeds. Press Generate to see them fill.</p>'


def message(text: str) -> str:
    """What went wrong."""
    return f'<p class="sm-error" role="alert">{escape(text)}</p>'


def told(text: str) -> str:
    """What happened, for those who do not see it, too."""
    return f'<p class="sm-told" role="status">{escape(text)}</p>'


def costs(lines: Sequence[Line], num_images: int) -> str:
    """What a click will cost, before it. The first line is the full model's."""
    full, fast = lines
    rows = "".join(
        f"<tr><th scope=row>{escape(line.name)}<br><small>{line.steps_text}</small></th>"
        f"<td>{line.flops / 1e9:.3g}</td><td>{_about(line.seconds)}</td></tr>"
        for line in (full, fast)
    )
    whole = sum(line.seconds or 0.0 for line in (full, fast)) * num_images
    images = f"{num_images} image{'s' if num_images != 1 else ''} each"
    total = f"{images}{f': about {_seconds(whole)} in all' if whole else ''}."
    fewer = times_fewer(full.flops, fast.flops)
    return (
        '<table class="sm-costs"><caption>What a click costs</caption><thead><tr><td></td>'
        f"<th scope=col>GFLOP an image</th><th scope=col>time an image</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
        f'<p class="sm-note">The accelerated model needs {fewer} GFLOP. {total}</p>'
    )


def _about(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"about {_seconds(seconds)}"


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.3g} s"


def slider(entry: Entry | None) -> str:
    """The finished images of both models, one above the other, with a slider between them."""
    if entry is None:
        return ""
    choices = "".join(
        f'<label class="sm-thumb"><input type="radio" name="sm-picture" value="{place}"'
        f"{' checked' if place == 0 else ''} data-full={_url(full)} data-fast={_url(fast)}>"
        f'<img src={_url(fast)} alt=""><span>{escape(fast.caption)}</span></label>'
        for place, (full, fast) in enumerate(zip(entry.full, entry.fast, strict=True))
    )
    strip = f'<fieldset class="sm-strip"><legend>Image</legend>{choices}</fieldset>'
    full, fast = entry.full[0], entry.fast[0]
    return (
        '<section class="sm-slider" aria-label="Slide between the two images"><div class="sm-stage">'
        f'<img class="under" src={_url(fast)} alt="{escape(fast.caption)}, accelerated">'
        f'<img class="over" src={_url(full)} alt="{escape(full.caption)}, full model">'
        '<span class="sm-handle"></span><span class="sm-tag">full model</span>'
        '<span class="sm-tag end">accelerated</span></div>'
        '<label class="sm-range">Slide between the full model (left) and the accelerated one (right)'
        '<input type="range" min="0" max="100" value="50"></label>'
        f"{strip if len(entry.fast) > 1 else ''}</section>"
    )


def gallery(entries: Sequence[Entry]) -> str:
    """Everything of a session, the newest first."""
    if not entries:
        return '<p class="sm-hint">Nothing was generated yet.</p>'
    return f'<ol class="sm-gallery" reversed>{"".join(map(_entry, reversed(entries)))}</ol>'


def _entry(entry: Entry) -> str:
    preset = (
        f'<a download="{escape(entry.preset_name)}" href="files/{entry.preset}">Download the preset</a>'
        if entry.preset
        else ""
    )
    sides = "".join(
        f"<div><h4>{escape(title)}</h4>"
        f'<p class="sm-note">{steps}, {gflop:.3g} GFLOP, {_seconds(seconds)} an image</p>'
        f'<div class="sm-pictures">{"".join(map(_download, pictures))}</div></div>'
        for title, steps, gflop, seconds, pictures in zip(
            ("Full model", entry.name),
            entry.steps,
            entry.gflop,
            entry.seconds,
            (entry.full, entry.fast),
            strict=True,
        )
    )
    return (
        f'<li><h3>{escape(entry.title)}</h3><p class="sm-note">{escape(entry.settings)}</p>'
        f'<div class="sm-both">{sides}</div><p class="sm-links">{preset}</p></li>'
    )


def _download(picture: GalleryImage) -> str:
    return (
        f'<a class="sm-picture" download="{escape(picture.file_name)}" href={_url(picture)}>'
        f'<img src={_url(picture)} alt="{escape(picture.caption)}"><span>PNG</span></a>'
    )


def _url(picture: GalleryImage) -> str:
    return f'"files/{picture.file}"'


def brush(file: str, size: tuple[int, int]) -> str:
    """A canvas over an image, to brush what is generated anew.

    Args:
        size: height and width of the image in pixels.
    """
    height, width = size
    return (
        f'<div class="sm-brush" data-image="files/{file}" data-width="{width}" data-height="{height}">'
        '<canvas tabindex="0" role="application" aria-label="Mask. Draw with the mouse or a finger; with the '
        'keyboard, arrows move the brush, Space paints, Backspace erases."></canvas></div>'
        '<p class="sm-note">What is painted is generated anew. Draw with the mouse or a finger. With the '
        "keyboard: arrows move the brush, Space paints, Backspace erases.</p>"
    )


def image_uri(image: Image.Image) -> str:
    """An image as a data URI, small enough to send many times a second."""
    shown = image.copy()
    shown.thumbnail((_SHOWN, _SHOWN), Image.Resampling.BOX)
    file = BytesIO()
    if max(shown.size) <= _LOSSLESS:
        shown.save(file, "PNG", compress_level=1)
        kind = "png"
    else:
        shown.save(file, "JPEG", quality=90, subsampling=0)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


@cache
def style() -> str:
    """The style of the page, with the colours of the reports by day and by night."""
    day, night = _colours((files("swiftmask.evaluate.report") / "colours.css").read_text(encoding="utf-8"))
    own = (files("swiftmask.studio") / "page.css").read_text(encoding="utf-8")
    return f":root {{{day}}}\n.dark {{ color-scheme: dark; {night}}}\n{own}"


def script() -> str:
    """What the page does without asking the server."""
    return (files("swiftmask.studio") / "page.js").read_text(encoding="utf-8")


def _colours(css: str) -> tuple[str, str]:
    """The declarations of the reports' two blocks; here a class chooses between them, not the system."""
    day, night = css.split("@media (prefers-color-scheme: dark)")
    return _inside(day).replace("color-scheme: light dark;", "color-scheme: light;"), _inside(night)


def _inside(block: str) -> str:
    return block.rsplit("{", 1)[1].split("}")[0]
