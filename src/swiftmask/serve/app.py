"""Images over HTTP, as OpenAI's clients ask for them: the routes, around a queue of decodes.

Not implemented: URLs instead of base64, more than one model family in a process, and TLS (put a proxy in
front).
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import JSONResponse, Response, StreamingResponse

from swiftmask.serve.catalogue import Catalogue, Variant
from swiftmask.serve.errors import RequestError
from swiftmask.serve.frame import FACTS, Frame, failed
from swiftmask.serve.limits import BodyReader
from swiftmask.serve.prepare import Prepared, prepare
from swiftmask.serve.requests import (
    Asked,
    encoded,
    read_form_request,
    read_json_request,
)
from swiftmask.serve.service import ImageService, ServeSettings, images_of, images_to_come, too_late

GENERATIONS, EDITS, MODELS = "/v1/images/generations", "/v1/images/edits", "/v1/models"
ROUTES = (GENERATIONS, EDITS, MODELS, "/health", "/metrics")

_MOST_FIELDS, _MOST_FILES, _FIELD_BYTES = 64, 4, 2**16
_SIGN_OF_LIFE_S = 15.0
"""Seconds of silence after which a stream says that it is still there."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page in the same server, which shares the model's thread.

    Attributes:
        path: that everything of it is below.
        mount: adds it to the app. It answers for itself: requests below `path` need no key, and neither the
            log nor the metrics tell of them.
    """

    path: str
    mount: Callable[[FastAPI, ImageService], None]


def image_app(catalogue: Catalogue, settings: ServeSettings, *, pages: Sequence[Page] = ()) -> Any:
    """The ASGI app. The thread of the model is started and warmed up here; the app's lifespan ends it.

    Errors: what the first decode raises, such as FloatingPointError for damaged weights.
    """
    service = ImageService(catalogue, settings)
    routes = Routes(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_api_route(GENERATIONS, routes.generations, methods=["POST"])
    app.add_api_route(EDITS, routes.edits, methods=["POST"])
    app.add_api_route(MODELS, routes.models, methods=["GET"])
    app.add_api_route(MODELS + "/{name:path}", routes.model, methods=["GET"])
    app.add_api_route("/health", routes.health, methods=["GET"])
    app.add_api_route("/metrics", routes.metrics_page, methods=["GET"])
    app.add_exception_handler(HTTPException, _as_request_error)
    for page in pages:
        page.mount(app, service)
    app.add_middleware(
        Frame,
        key=settings.api_key,
        routes=ROUTES,
        metrics=service.metrics,
        pages=[page.path for page in pages],
    )
    return app


async def _as_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = ", ".join(ROUTES)
    said = {404: f"there is no such path: known are {known}", 405: "this path takes another method"}
    raise RequestError(said.get(error.status_code, str(error.detail)), status=error.status_code)


class Routes:
    """The routes of one server, and what they share."""

    def __init__(self, service: ImageService) -> None:
        self._catalogue, self._settings, self._metrics = service.catalogue, service.settings, service.metrics
        self._batches, self._costs = service.batches, service.costs
        self._created = int(time.time())
        self._reader = BodyReader(service.settings.limits)

    async def generations(self, request: Request) -> Response:
        """POST /v1/images/generations"""
        async with self._reader.body(request.headers, request.receive) as body:
            asked = read_json_request(body, self._settings.requests)
        return await self._answer(request, asked, "image_generation")

    async def edits(self, request: Request) -> Response:
        """POST /v1/images/edits"""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise RequestError("expected multipart/form-data with an image", status=415)
        async with self._reader.body(request.headers, request.receive) as body:
            texts, files = await _parts(request, body)
            asked = await asyncio.to_thread(read_form_request, texts, files, self._settings.requests)
        return await self._answer(request, asked, "image_edit")

    async def models(self) -> Response:
        """GET /v1/models"""
        listed = [self._described(variant) for variant in self._catalogue.variants.values()]
        return JSONResponse({"object": "list", "data": listed})

    async def model(self, name: str) -> Response:
        """GET /v1/models/NAME"""
        return JSONResponse(self._described(self._catalogue.find(name, None, None)))

    async def health(self) -> Response:
        """GET /health"""
        alive = self._batches.alive
        content = {
            "status": "ok" if alive else "the model's thread has ended",
            "model": self._catalogue.base.name,
            "waiting_images": self._batches.num_waiting(),
            "running_images": self._batches.num_running,
        }
        return JSONResponse(content, status_code=200 if alive else 503)

    async def metrics_page(self) -> Response:
        """GET /metrics"""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _answer(self, request: Request, asked: Asked, kind: str) -> Response:
        facts = request.scope[FACTS]
        facts |= {"images": len(asked.what)} | ({"prompt": asked.what} if self._settings.log_prompts else {})
        prepared = await asyncio.to_thread(prepare, self._catalogue, asked)
        facts |= {"model": prepared.variant.name, "steps": prepared.job.steps}
        if asked.stream:
            events = self._events(request, asked, prepared, kind)
            first = await anext(events)  # what is refused is refused with its own status
            return StreamingResponse(_chained(first, events), media_type="text/event-stream")
        with _cancelled_after(prepared):
            self._batches.submit(prepared.job)
            counts = self._costs.counted(prepared)
            images = await self._finished(request, prepared)
            cost = await self._cost(request, prepared, counts)
        data = await asyncio.to_thread(_data, images, asked)
        self._metrics.images.labels(prepared.variant.name).inc(len(images))
        return JSONResponse({**self._envelope(request, prepared, asked), "data": data, "cost": cost})

    async def _finished(self, request: Request, prepared: Prepared) -> list[Image.Image]:
        """The images, unless the client goes away or the time is over."""
        waiting = images_to_come(prepared.job)
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait(
                {waiting, gone}, timeout=self._settings.timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if waiting.done():
                return images_of(waiting)
            if gone.done():
                raise RequestError("the client is gone", status=499, close=True)
            raise too_late(self._settings.timeout_s)
        finally:
            gone.cancel()

    async def _cost(self, request: Request, prepared: Prepared, counts: Any) -> dict[str, object]:
        cost = self._costs.told(prepared, await asyncio.wrap_future(counts))
        self._metrics.queue_seconds.observe(float(str(cost["queue_ms"])) / 1000)
        request.scope[FACTS] |= {
            "batch": cost["batch_size"],
            "queue_ms": cost["queue_ms"],
            "ms_per_image": cost["ms_per_image"],
        }
        return cost

    async def _events(
        self, request: Request, asked: Asked, prepared: Prepared, kind: str
    ) -> AsyncIterator[bytes]:
        """Server-sent events: unfinished images as they come, then each image with the cost."""
        loop, job = asyncio.get_running_loop(), prepared.job
        told: asyncio.Queue[tuple[int, int, Image.Image]] = asyncio.Queue()

        def on_partial(row: int, index: int, image: Image.Image) -> None:
            loop.call_soon_threadsafe(told.put_nowait, (row, index, image))

        job.on_partial = on_partial
        envelope = self._envelope(request, prepared, asked)
        with _cancelled_after(prepared):
            self._batches.submit(job)
            counts = self._costs.counted(prepared)
            yield b": queued\n\n"
            waiting = images_to_come(job)
            waiting.add_done_callback(lambda _: told.put_nowait((-1, -1, Image.new("L", (1, 1)))))
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    async for row, index, image in _until_done(told):
                        if image is None:
                            yield b": waiting\n\n"
                            continue
                        text = await asyncio.to_thread(encoded, image, asked.output_format, asked.compression)
                        partial = {"b64_json": text, "partial_image_index": index, "image_index": row}
                        yield _event(f"{kind}.partial_image", envelope | partial)
                images = images_of(waiting)
            except TimeoutError:
                yield _event("error", too_late(self._settings.timeout_s).content())
                return
            except RequestError as error:
                yield _event("error", error.content())
                return
            except Exception as error:  # the answer has begun: what is left is to say it in the stream
                yield _event("error", failed(request.scope, error).content())
                return
            cost = await self._cost(request, prepared, counts)
        for row, entry in enumerate(await asyncio.to_thread(_data, images, asked)):
            yield _event(f"{kind}.completed", envelope | entry | {"image_index": row, "cost": cost})
        self._metrics.images.labels(prepared.variant.name).inc(len(images))

    def _envelope(self, request: Request, prepared: Prepared, asked: Asked) -> dict[str, object]:
        height, width = prepared.variant.size
        return {
            "id": request.scope[FACTS]["id"],
            "created": int(time.time()),
            "created_at": int(time.time()),
            "model": prepared.variant.name,
            "size": f"{width}x{height}",
            "output_format": asked.output_format,
            "quality": "auto",
            "background": "opaque",
        }

    def _described(self, variant: Variant) -> dict[str, object]:
        """An entry of /v1/models."""
        pipeline, (height, width) = variant.pipeline, variant.size
        full = [step.index for step in pipeline.schedule() if step.full]
        return {
            "id": variant.name,
            "object": "model",
            "created": self._created,
            "owned_by": "swiftmask",
            "base": self._catalogue.base.name,
            "takes": pipeline.model.spec.draws,
            "weights": variant.fingerprint,
            "precision": str(pipeline.dtype).removeprefix("torch."),
            "device": pipeline.model.device.type,
            "accelerators": variant.accelerators,
            "steps": pipeline.steps,
            "full_steps": len(full),
            "size": f"{width}x{height}",
            "other_sizes": hasattr(pipeline.model, "sized"),
        }


@contextmanager
def _cancelled_after(prepared: Prepared) -> Iterator[None]:
    """However the answer ends, nobody waits for the job afterwards."""
    try:
        yield
    finally:
        if not prepared.job.future.done():
            prepared.job.cancel()


async def _gone(request: Request) -> None:
    """Return when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _data(images: list[Image.Image], asked: Asked) -> list[dict[str, object]]:
    return [
        {"b64_json": encoded(image, asked.output_format, asked.compression), "seed": seed}
        for image, seed in zip(images, asked.seeds, strict=True)
    ]


def _event(name: str, content: dict[str, object]) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **content})}\n\n".encode()


async def _chained(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def _until_done(
    told: "asyncio.Queue[tuple[int, int, Image.Image]]",
) -> AsyncIterator[tuple[int, int, Image.Image | None]]:
    """What is put into a queue, None after each silence, until a row of -1."""
    while True:
        try:
            async with asyncio.timeout(_SIGN_OF_LIFE_S):
                row, index, image = await told.get()
        except TimeoutError:
            yield 0, 0, None
            continue
        if row < 0:
            return
        yield row, index, image


async def _parts(request: Request, body: bytes) -> tuple[list[tuple[str, str]], dict[str, list[bytes]]]:
    """Texts and files of a form. Errors: RequestError."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        request.headers,
        stream(),
        max_files=_MOST_FILES,
        max_fields=_MOST_FIELDS,
        max_part_size=_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, UnicodeError) as error:
        raise RequestError(
            "the form cannot be read: expected multipart/form-data", code="invalid_form"
        ) from error
    texts: list[tuple[str, str]] = []
    files: dict[str, list[bytes]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            texts.append((name, value))
        else:
            files.setdefault(name.removesuffix("[]"), []).append(await value.read())
    await form.close()
    return texts, files
