"""The page: gradio's components around what the other modules know, mounted on the server's own app."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI

from swiftmask.serve.app import Page
from swiftmask.serve.errors import RequestError
from swiftmask.serve.service import ImageService
from swiftmask.studio import live, markup
from swiftmask.studio.offline import gr
from swiftmask.studio.session import Knobs, requests_of

PATH = "/studio"
_FONT = ["system-ui", "-apple-system", "Segoe UI", "Liberation Sans", "sans-serif"]
_MONO = ["ui-monospace", "SF Mono", "Liberation Mono", "monospace"]


def studio_page() -> Page:
    """What `image_app` mounts."""
    return Page(PATH, _mount)


def _mount(app: FastAPI, service: ImageService) -> None:
    gr.mount_gradio_app(
        app,
        _blocks(service),
        PATH,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=service.settings.limits.num_bytes,
        theme=gr.themes.Base(font=_FONT, font_mono=_MONO),
        css=markup.style(),
    )


def _blocks(service: ImageService) -> Any:
    catalogue = service.catalogue
    base = catalogue.base
    of_class = base.model.spec.draws == "class"
    variants = [name for name in catalogue.variants if name != base.name]
    with gr.Blocks(title=f"swiftmask studio: {base.name}", analytics_enabled=False) as blocks:
        gr.Markdown(f"# {base.name}")
        with gr.Row():
            if of_class:
                names = list(getattr(base.model, "class_names", ())) or [
                    str(number) for number in range(base.model.spec.num_classes or 0)
                ]
                what: Any = gr.Dropdown(names, value=[names[0]], multiselect=True, label="Classes")
            else:
                what = gr.Textbox(label="Prompt", value="a red circle")
            button = gr.Button("Generate", variant="primary")
        shown = gr.HTML()
        with gr.Row():
            variant = gr.Dropdown(variants, value=variants[0], label="Accelerator")
            seed = gr.Number(7, label="Seed", precision=0)
            images = gr.Slider(1, 4, 1, step=1, label="Images")

        async def generate(what: Any, variant: str, seed: int, images: int) -> AsyncIterator[Any]:
            try:
                asked = (what,) if isinstance(what, str) else tuple(what)
                knobs = Knobs(what=asked, seed=int(seed), num_images=int(images), variant=variant)
                sides = await live.sides_of(
                    service, *requests_of(knobs, catalogue, service.settings.requests)
                )
                yield markup.comparison(sides)
                async for _ in live.run(service, sides):
                    yield markup.comparison(sides)
            except RequestError as error:
                raise gr.Error(error.message, print_exception=False) from error

        gr.on(
            [button.click, *([] if of_class else [what.submit])],
            generate,
            [what, variant, seed, images],
            shown,
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
    return blocks
