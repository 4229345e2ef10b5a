"""Replicas of the app on Ray Serve, behind one front that listens on this machine.

The front reads a request within the limits of connections and bodies, and hands it to a replica, which runs
the app of `serve/app.py` as it is. Where a replica dies before any of its answer was passed on, the front
hands the request to another one: it loses no request but a stream that has begun.

Not used: Serve's own HTTP proxies, which know none of our limits, and `@serve.batch` (docs/decisions/0009).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Send

from swiftmask.fleet.pool import Pool, connected
from swiftmask.serve.errors import RequestError
from swiftmask.serve.limits import BodyReader, Limits

_log = logging.getLogger(__name__)


_NAME = "swiftmask"
_PASSED_ON = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "headers",
)
"""What of a request's scope goes to a replica; the rest belongs to the front's connection."""

_PAUSE_S = 0.2
"""Before a request is handed on again: Serve needs a moment to see that a replica is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicas:
    """How many there are.

    Attributes:
        most: that Serve starts when requests wait.
        fewest: that there are when none wait.
        num_gpus: of each; None is 1 where the cluster has GPUs.
        busy: requests at a time, of each, above which Serve starts another.
    """

    most: int
    fewest: int = 1
    num_gpus: float | None = None
    busy: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most:
            raise ValueError(
                f"--min-replicas is from 1 to --replicas, got {self.fewest} and --replicas {self.most}"
            )


class Replica:
    """The app in a process of a cluster.

    Args:
        build: makes the ASGI app.
    """

    def __init__(self, build: Callable[[], Any]) -> None:
        self._app = build()

    async def answer(self, scope: Message, body: bytes) -> AsyncIterator[Message]:
        """The ASGI messages of the answer. A caller that goes away is a client that goes away."""
        told: asyncio.Queue[Message | None] = asyncio.Queue()
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if unread:
                return unread.pop()
            await asyncio.Event().wait()
            raise AssertionError

        task = asyncio.ensure_future(self._app(scope, receive, told.put))
        task.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (message := await told.get()) is not None:
                yield message
            await task
        finally:
            task.cancel()


class Front:
    """ASGI app that hands requests to replicas.

    Args:
        handle: of the deployment.
        timeout_s: how long a request may be handed from one dead replica to the next.
    """

    def __init__(self, handle: Any, limits: Limits, timeout_s: float) -> None:
        self._handle, self._timeout_s = handle.options(stream=True), timeout_s
        self._reader = BodyReader(limits)
        self._lost = import_module("ray.exceptions")

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await _lifespan(receive, send)
        try:
            body = b""
            if scope["method"] not in ("GET", "HEAD"):
                async with self._reader.body(Headers(scope=scope), receive) as body:
                    pass
            await self._until_answered(scope, body, receive, send)
        except RequestError as error:
            answer = JSONResponse(error.content(), status_code=error.status, headers=error.headers())
            await answer(scope, receive, send)

    async def _until_answered(self, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        passed_on = {name: scope[name] for name in _PASSED_ON if name in scope}
        answering = asyncio.ensure_future(self._handed_on(passed_on, body, send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            gone.cancel()
            answering.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await answering

    async def _handed_on(self, scope: Message, body: bytes, send: Send) -> None:
        """Errors: RequestError if all replicas die; ConnectionError if one dies while it answers."""
        until = time.monotonic() + self._timeout_s
        lost = (self._lost.RayActorError, self._lost.NodeDiedError, self._lost.ObjectLostError)
        while True:
            begun = False
            messages = self._handle.answer.remote(scope, body)
            try:
                start: Message | None = None
                async for message in messages:
                    if start is None:
                        start = message  # not passed on before there is something of a body
                        continue
                    if not begun:
                        begun = True
                        await send(start)
                    await send(message)
                return
            except lost as error:
                _log.warning("a replica is lost: %s", type(error).__name__)
                if begun:
                    raise ConnectionError("a replica died in the middle of its answer") from error
                if time.monotonic() > until:
                    raise RequestError("no replica answers", status=503, retry_after=1) from error
                await asyncio.sleep(_PAUSE_S)
            finally:
                messages.cancel()


@contextmanager
def deployed(
    build: Callable[[], Any], replicas: Replicas, *, limits: Limits, timeout_s: float
) -> Iterator[Front]:
    """Deploy the app, and end it with this; yields the front's app once a replica answers.

    Args:
        build: makes the app in a replica.

    Errors: ValueError if ray is missing, for a cluster that is too small, or with what `build` raised.
    """
    with connected(Pool(num_workers=replicas.most, num_gpus=replicas.num_gpus)) as pool:
        serve = import_module("ray.serve")
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location="Disabled")
        deployment = serve.deployment(
            Replica,
            name=_NAME,
            autoscaling_config={
                "min_replicas": replicas.fewest,
                "initial_replicas": replicas.fewest,
                "max_replicas": replicas.most,
                "target_ongoing_requests": replicas.busy,
            },
            max_ongoing_requests=4 * replicas.busy,
            max_constructor_retry_count=1,
            ray_actor_options={"num_cpus": 1, "num_gpus": pool.num_gpus},
            graceful_shutdown_timeout_s=timeout_s,
        )
        try:
            try:
                handle = serve.run(deployment.bind(build), name=_NAME, route_prefix=None)
            except RuntimeError as error:
                raise ValueError(_reason(serve)) from error
            yield Front(handle, limits, timeout_s)
        finally:
            serve.shutdown()


def _reason(serve: Any) -> str:
    """The last line of what a replica raised."""
    application = serve.status().applications.get(_NAME)
    said = [each.message for each in application.deployments.values()] if application else []
    lines = [line.strip() for text in said for line in text.splitlines() if "Error: " in line]
    return lines[-1].partition("Error: ")[2] if lines else "no replica could be started"


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
