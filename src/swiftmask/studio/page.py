"""The page: gradio's components around what the other modules know, mounted on the server's own app."""

import asyncio
import base64
import io
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from PIL import Image
from starlette.responses import Response

from swiftmask.core.ranges import SEED
from swiftmask.data.images.cropping import centre_crop
from swiftmask.data.images.decode import to_rgb
from swiftmask.serve.app import Page
from swiftmask.serve.errors import RequestError
from swiftmask.serve.service import ImageService
from swiftmask.studio import live, markup
from swiftmask.studio.code import MASK, START, Source, command_of, python_of
from swiftmask.studio.gallery import Entry, Files, entry_of, png_bytes
from swiftmask.studio.offline import gr
from swiftmask.studio.session import (
    SAMPLING,
    Estimates,
    Knobs,
    Line,
    changed_knobs,
    own_full_steps,
    requests_of,
    short_name,
)

PATH = "/studio"
USER = "studio"
"""Who logs in where the server has an API key, which is the password."""

_log = logging.getLogger(__name__)
_FONT = ["system-ui", "-apple-system", "Segoe UI", "Liberation Sans", "sans-serif"]
_MONO = ["ui-monospace", "SF Mono", "Liberation Mono", "monospace"]
_MOST_IMAGES = 4
_TYPES = {"png": "image/png", "json": "application/json"}
_FAILED = "the page failed: the server's log tells more"


def studio_page(source: Source, report: Path | None = None) -> Page:
    """What `image_app` mounts.

    Args:
        source: how the base model was loaded.
        report: page of the model's report, for a tab.
    """
    return Page(PATH, lambda app, service: Studio(service, source, report).mount(app))


@dataclass
class Studio:
    """The page of one server. What a person made is in the session, not here."""

    service: ImageService
    source: Source
    report: Path | None
    files: Files = field(default_factory=Files)
    report_name: str = field(default_factory=lambda: f"report-{secrets.token_urlsafe(16)}.html")
    estimates: Estimates = field(default_factory=Estimates)

    def __post_init__(self) -> None:
        if (pace := self.service.costs.pace) is not None:
            self.estimates.pace = pace.per_image
        self.base = self.service.catalogue.base
        self.of_class = self.base.model.spec.draws == "class"
        offered = self.service.catalogue.variants
        self.variants = sorted(  # what was trained for the model comes first
            (name for name in offered if name != self.base.name),
            key=lambda name: offered[name].settings.caching is not None,
        )

    def mount(self, app: FastAPI) -> None:
        """Add the page and its files to a server."""
        app.add_api_route(f"{PATH}/files/{{name}}", self.file, methods=["GET"])
        if self.report is not None:
            app.add_api_route(f"{PATH}/{self.report_name}", self.report_page, methods=["GET"])
        app.add_api_route(
            "/favicon.ico", _nothing, methods=["GET"]
        )  # browsers ask for it, whatever pages say
        key = self.service.settings.api_key
        gr.mount_gradio_app(
            app,
            self.blocks(),
            PATH,
            auth=None if key is None else (USER, key),
            auth_message=f"User {USER}; the password is the server's API key." if key else None,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            max_file_size=self.service.settings.limits.num_bytes,
            theme=_theme(),
            css=markup.style(),
            head=f"<script>{markup.script()}</script>",
        )

    async def file(self, name: str) -> Response:
        """GET files/NAME: an image or a preset of a session."""
        content = self.files.find(name)
        if content is None:
            return Response("there is no such file any more: generate it again\n", status_code=404)
        return Response(content, media_type=_TYPES[name.rsplit(".", 1)[1]])

    async def report_page(self) -> Response:
        """GET the report, whose name only those know who may see the page."""
        assert self.report is not None
        return Response(await asyncio.to_thread(self.report.read_bytes), media_type="text/html")

    def blocks(self) -> Any:
        """The page."""
        with gr.Blocks(
            title=f"swiftmask studio: {self.base.name}", analytics_enabled=False, fill_width=True
        ) as blocks:
            gr.HTML(self._head(), elem_classes="sm-head")
            entries = gr.State([])
            with gr.Tabs():
                with gr.Tab("Generate"):
                    shown = self._generate_tab()
                with gr.Tab("Gallery"):
                    gallery = gr.HTML(markup.gallery([]))
                with gr.Tab("Code"):
                    code = self._code_tab()
                with gr.Tab("Report"):
                    gr.HTML(self._report_text(), elem_classes="sm-report")
            self._connect(blocks, shown, [entries, gallery, *code])
        return blocks

    def _head(self) -> str:
        height, width = self.base.image_size()
        draws = "classes" if self.of_class else "prompts"
        return (
            f"<h1>{escape(self.base.name)}</h1><p>Generates {width}x{height} images from {draws}, with "
            f"{str(self.base.dtype).removeprefix('torch.')} weights on {self.base.model.device.type}. "
            "The full model and the accelerated one start from the same seeds.</p>"
        )

    def _generate_tab(self) -> "_Shown":
        with gr.Row(elem_classes="sm-layout"):
            with gr.Column(elem_classes="sm-ask"):
                knobs = self._asked()
                with gr.Row():
                    button = gr.Button("Generate", variant="primary")
                    stop = gr.Button("Stop")
                costs = gr.HTML("")
            with gr.Column(elem_classes="sm-result"):
                status = gr.HTML("")
                canvases = gr.HTML(markup.blank())
                gr.HTML(markup.KEY)
                slider = gr.HTML("")
            with gr.Column(elem_classes="sm-set"):
                knobs |= self._settings()
                with gr.Accordion("Start from an image (inpainting)", open=False):
                    upload = gr.Image(
                        label="Image",
                        type="pil",
                        image_mode=None,
                        sources=["upload", "clipboard"],
                        height=160,
                    )
                    last = gr.Button("Take the last accelerated image", size="sm")
                    brush = gr.HTML("")
                    knobs["mask"] = gr.Textbox(elem_id="sm-mask", visible="hidden")
                    knobs["image"] = gr.State(None)
        return _Shown(knobs, button, stop, costs, status, canvases, slider, upload, last, brush)

    def _asked(self) -> dict[str, Any]:
        """What to generate."""
        if self.of_class:
            count = self.base.model.spec.num_classes or 0
            names = list(getattr(self.base.model, "class_names", ())) or [str(n) for n in range(count)]
            what: Any = gr.Dropdown(names, value=names[:1], multiselect=True, label="Classes")
        else:
            what = gr.Textbox(label="Prompt", value="a red circle", lines=2, max_lines=6, submit_btn=False)
        knobs = {"what": what}
        if getattr(self.base.model, "check_prompts", None) is not None:
            knobs["negative_prompt"] = gr.Textbox(label="Negative prompt", placeholder="what not to show")
        with gr.Row():
            knobs["seed"] = gr.Number(0, label="First seed", precision=0, minimum=0, min_width=120)
            knobs["num_images"] = gr.Slider(1, _MOST_IMAGES, 1, step=1, label="Images", min_width=120)
        return knobs

    def _settings(self) -> dict[str, Any]:
        """How to generate."""
        most = min(self.service.settings.requests.max_steps, self.base.model.spec.num_tokens)
        first = self.service.catalogue.variants[self.variants[0]]
        names = [(short_name(name, self.base.name), name) for name in self.variants]
        full = own_full_steps(first)
        knobs: dict[str, Any] = {
            "variant": gr.Dropdown(names, value=first.name, label="Accelerator"),
            "steps": gr.Slider(1, most, first.pipeline.steps, step=1, label="Steps, accelerated"),
            "full_steps": gr.Slider(
                1, most, full or 1, step=1, label="Full steps, accelerated", interactive=full is not None
            ),
            "baseline_steps": gr.Slider(1, most, self.base.steps, step=1, label="Steps, full model"),
        }
        with gr.Row():
            for name, label in zip(SAMPLING, _LABELS, strict=True):
                knobs[name] = gr.Textbox(label=label, placeholder="the model's own", min_width=140)
        if hasattr(self.base.model, "sized"):
            knobs["size"] = gr.Textbox(label="Size", placeholder="the model's own, or WIDTHxHEIGHT")
        return knobs

    def _code_tab(self) -> list[Any]:
        gr.HTML(
            '<p class="sm-note">The accelerated model of the Generate tab, with the settings that are '
            "chosen there now.</p>"
        )
        command = gr.Code(language="shell", label="Command", interactive=False, lines=1, wrap_lines=True)
        python = gr.Code(language="python", label="Python", interactive=False, lines=9, wrap_lines=True)
        links = gr.HTML("")
        return [command, python, links]

    def _report_text(self) -> str:
        if self.report is not None:
            return f'<iframe src="{self.report_name}" title="Report of the model"></iframe>'
        return (
            '<p class="sm-hint">This server was given no report. '
            f"<code>swiftmask bench {escape(self.source.model)}</code> makes one; "
            "<code>--report report/report.html</code> shows it here.</p>"
        )

    def _connect(self, blocks: Any, shown: "_Shown", kept: list[Any]) -> None:
        """What happens when."""
        quiet = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        knobs, (entries, gallery, command, python, links) = shown.knobs, kept
        inputs = {*knobs.values()}
        names = {component: name for name, component in knobs.items()}

        def named(values: Mapping[Any, Any]) -> dict[str, Any]:
            return {names[component]: value for component, value in values.items() if component in names}

        async def generate(values: dict[Any, Any]) -> AsyncIterator[Any]:
            async for state in self.generate(named(values), values[entries]):
                yield {
                    shown.status: state.status,
                    shown.canvases: state.canvases,
                    shown.slider: state.slider,
                    entries: state.entries,
                    gallery: markup.gallery(state.entries)
                    if state.entries is not values[entries]
                    else gr.skip(),
                }

        async def preview(values: dict[Any, Any]) -> Any:
            told = await self.preview(named(values))
            return {shown.costs: told[0], command: told[1], python: told[2], links: told[3]}

        outputs = [shown.status, shown.canvases, shown.slider, entries, gallery]
        what = knobs["what"]
        clicked = gr.on(
            [shown.button.click, *([] if self.of_class else [what.submit])],
            generate,
            inputs | {entries},
            outputs,
            **quiet,
        )
        clicked.then(preview, inputs, [shown.costs, command, python, links], **quiet)  # times are known now
        shown.stop.click(lambda: markup.told("Stopped."), None, shown.status, cancels=[clicked], **quiet)
        changes = [component.change for component in knobs.values()]
        gr.on(
            [blocks.load, *changes],
            preview,
            inputs,
            [shown.costs, command, python, links],
            trigger_mode="always_last",
            **quiet,
        )
        knobs["variant"].change(
            self._own_steps, knobs["variant"], [knobs["steps"], knobs["full_steps"]], **quiet
        )
        shown.upload.change(
            self.started, shown.upload, [knobs["image"], shown.brush, knobs["mask"], shown.status], **quiet
        )
        shown.last.click(self._last, entries, [shown.upload, shown.status], **quiet)

    def _own_steps(self, name: str) -> tuple[Any, Any]:
        """The sliders, as a variant takes them."""
        variant = self.service.catalogue.variants[name]
        full = own_full_steps(variant)
        return variant.pipeline.steps, gr.Slider(value=full or 1, interactive=full is not None)

    def _last(self, entries: list[Entry]) -> tuple[Any, str]:
        """The last accelerated image, to start from."""
        content = self.files.find(entries[-1].fast[0].file) if entries else None
        if content is None:
            return gr.skip(), markup.message("nothing was generated yet: press Generate first")
        return Image.open(io.BytesIO(content)), ""

    def started(self, image: Image.Image | None) -> tuple[Any, str, str, str]:
        """An image to start from, no larger than the model's, and the brush over it."""
        if image is None:
            return None, "", "", ""
        height, width = self.base.image_size()
        image, said = to_rgb(image).image, ""
        if image.width > width or image.height > height:
            if height != width:
                image = image.copy()
                image.thumbnail((width, height), Image.Resampling.LANCZOS)
            else:
                image = centre_crop(image, width)
            said = markup.told(f"The image was scaled and cropped to {image.width}x{image.height}.")
        file = self.files.add(png_bytes(image), "png")
        return image, markup.brush(file, (image.height, image.width)), "", said

    def _knobs(self, values: Mapping[str, Any]) -> Knobs:
        """What was chosen. Errors: RequestError."""
        what = values["what"]
        given = {name: value for name, value in values.items() if value not in (None, "") and name != "what"}
        for name in ("seed", "num_images", "steps", "full_steps", "baseline_steps"):
            given[name] = int(given[name]) if name in given else None
        given |= {name: _number(name, given[name]) for name in SAMPLING if name in given}
        if given["seed"] is None or not SEED.holds(given["seed"]):
            raise RequestError(f"the seed must be a whole number {SEED}", param="seed")
        if "mask" in given:
            given["mask"] = _mask(given["mask"])
        if "image" not in given:
            given.pop("mask", None)
        asked = (what,) if isinstance(what, str) else tuple(map(str, what or ()))
        if not asked:
            raise RequestError("choose a class first", param="what")
        return changed_knobs(Knobs(what=asked, **given), self.service.catalogue)

    async def preview(self, values: Mapping[str, Any]) -> tuple[str, str, str, str]:
        """What a click would cost, the command, the Python, and the files that they read."""
        try:
            knobs = self._knobs(values)
            catalogue = self.service.catalogue
            asked = requests_of(knobs, catalogue, self.service.settings.requests)
            sides = await live.sides_of(self.service, *asked)
            counts = [self.service.costs.counted(side.prepared) for side in sides]
            counted = [(await asyncio.wrap_future(count))[0] for count in counts]
            names = ("Full model", short_name(knobs.variant, self.base.name))
            images = len(sides[0].seeds)
            lines = [
                Line(
                    name=name,
                    full=side.full,
                    flops=flops,
                    seconds=self.estimates.seconds(side.prepared.variant.name, flops, images),
                )
                for name, side, flops in zip(names, sides, counted, strict=True)
            ]
            links = self._links(knobs)
            command = command_of(knobs, catalogue, self.source)
            return markup.costs(lines, images), command, python_of(knobs, catalogue, self.source), links
        except RequestError as error:
            return markup.message(error.message), "", "", ""

    def _links(self, knobs: Knobs) -> str:
        """Downloads of the files that the code reads."""
        images = [(START, knobs.image), (MASK, knobs.mask)] if knobs.image is not None else []
        links = [
            f'<a download="{name}" href="files/{self.files.add(png_bytes(image), "png")}">{name}</a>'
            for name, image in images
            if image is not None
        ]
        return f'<p class="sm-note">The code reads {" and ".join(links)}.</p>' if links else ""

    async def generate(self, values: Mapping[str, Any], entries: list[Entry]) -> AsyncIterator["_State"]:
        """Both decodes, live, then the slider and the gallery."""
        state = _State(entries=entries, slider=gr.skip(), canvases=gr.skip())
        try:
            knobs = self._knobs(values)
            asked = requests_of(knobs, self.service.catalogue, self.service.settings.requests)
            sides = await live.sides_of(self.service, *asked)
            titles = ("Full model", short_name(knobs.variant, self.base.name).capitalize())
            state.slider = ""
            state.canvases = markup.comparison(sides, titles)
            yield state
            async for _ in live.run(self.service, sides):
                state.canvases = markup.comparison(sides, titles)
                yield state
            for side in sides:
                self.estimates.remember(side.prepared.variant.name, sum(side.flops), side.seconds)
            entry = await asyncio.to_thread(entry_of, sides, knobs, self.service.catalogue, self.files)
            state.entries = [*entries, entry]
            state.slider = markup.slider(entry)
            state.status = markup.told(_finished(len(entry.fast)))
        except RequestError as error:
            state.status = markup.message(error.message)
        except Exception:  # whatever a decode may raise, the page lives on and says so
            _log.exception("a click failed")
            state.status = markup.message(_FAILED)
        yield state


_LABELS = ("Guidance (1 is off)", "Temperature", "Choice temperature", "Schedule power")


@dataclass(frozen=True, slots=True)
class _Shown:
    """Components of the first tab."""

    knobs: dict[str, Any]
    button: Any
    stop: Any
    costs: Any
    status: Any
    canvases: Any
    slider: Any
    upload: Any
    last: Any
    brush: Any


@dataclass(slots=True, kw_only=True)
class _State:
    """What the first tab shows."""

    entries: list[Entry]
    canvases: Any
    slider: Any
    status: str = ""


async def _nothing() -> Response:
    return Response(status_code=204)


def _finished(count: int) -> str:
    return "Both images are finished." if count == 1 else f"{count} images of each model are finished."


def _number(name: str, text: str) -> float:
    """A number that was typed. Errors: RequestError."""
    try:
        return float(text)
    except ValueError:
        called = name.replace("_", " ")
        raise RequestError(f"{called} must be a number, got {text[:40]!r}", param=name) from None


def _mask(uri: str) -> Image.Image:
    """The brush's PNG. Errors: RequestError."""
    try:
        content = base64.b64decode(uri.partition(",")[2], validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            return image.convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError("the mask is no PNG: paint it again", param="mask") from error


def _theme() -> Any:
    """Gradio's plain theme in the colours of the reports."""
    both = {
        "body_background_fill": "var(--paper)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--soft)",
        "background_fill_primary": "var(--paper)",
        "background_fill_secondary": "var(--box)",
        "block_background_fill": "var(--paper)",
        "block_label_text_color": "var(--soft)",
        "block_title_text_color": "var(--ink)",
        "block_border_color": "var(--line)",
        "border_color_primary": "var(--line)",
        "border_color_accent": "var(--accent)",
        "input_background_fill": "var(--box)",
        "input_border_color": "var(--edge)",
        "input_placeholder_color": "var(--soft)",
        "button_primary_background_fill": "var(--accent)",
        "button_primary_background_fill_hover": "var(--accent)",
        "button_primary_text_color": "var(--accent-ink)",
        "button_secondary_background_fill": "var(--box)",
        "button_secondary_background_fill_hover": "var(--line)",
        "button_secondary_text_color": "var(--ink)",
        "slider_color": "var(--accent)",
        "color_accent": "var(--accent)",
    }
    dark = {f"{name}_dark": value for name, value in both.items()}
    themed = gr.themes.Base(font=_FONT, font_mono=_MONO)
    known = set(vars(themed))
    return themed.set(**{name: value for name, value in (both | dark).items() if name in known})
