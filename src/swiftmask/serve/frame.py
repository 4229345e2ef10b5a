"""What every request passes on its way in and out: an id, the key, errors, the log, the metrics."""

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from starlette.responses import JSONResponse

from swiftmask.serve.errors import RequestError, error_type
from swiftmask.serve.metrics import Metrics

_log = logging.getLogger(__name__)
REQUESTS = logging.getLogger("swiftmask.serve.requests")
"""One line of JSON a request."""

FACTS = "swiftmask.facts"
"""Where in the scope a route leaves what the log tells of a request."""

Send = Callable[[Any], Awaitable[None]]


def failed(scope: Any, error: Exception) -> RequestError:
    """What is said of a defect: where the log tells more."""
    facts = scope[FACTS]
    _log.error("request %s failed", facts["id"], exc_info=error)
    facts["error"] = type(error).__name__
    return RequestError(
        f"the server failed: its log tells more under {facts['id']}", status=500, code="internal"
    )


class Frame:
    """ASGI middleware.

    Args:
        key: API key that requests must carry (Authorization: Bearer KEY); None for none.
        open_routes: paths that need no key.
        routes: paths that metrics tell apart; others are "other".
        pages: paths below which other apps answer for themselves: their requests pass as they are.
        error_content: the JSON of an error.
    """

    def __init__(
        self,
        app: Any,
        *,
        key: str | None = None,
        open_routes: Collection[str] = ("/health",),
        routes: Collection[str] = (),
        pages: Collection[str] = (),
        metrics: Metrics | None = None,
        error_content: Callable[[RequestError], dict[str, object]] = RequestError.content,
    ) -> None:
        self._app, self._key, self._metrics = app, key, metrics
        self._open, self._routes, self._pages = open_routes, routes, pages
        self._error_content = error_content

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] != "http" or self._is_of_a_page(scope["path"]):
            await self._app(scope, receive, send)
            return
        started, number = time.perf_counter(), f"req-{uuid4().hex[:16]}"
        facts: dict[str, Any] = {"id": number}
        scope[FACTS], status = facts, 0

        async def tell(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", number.encode()))
            await send(message)

        try:
            await self._answer(scope, receive, tell, started=lambda: status != 0)
        except BaseException as error:
            facts.setdefault("error", type(error).__name__)
            raise
        finally:
            self._tell(scope, facts, status or 499, time.perf_counter() - started)

    async def _answer(self, scope: Any, receive: Any, send: Send, *, started: Callable[[], bool]) -> None:
        facts = scope[FACTS]
        try:
            self._check_key(scope)
            await self._app(scope, receive, send)
        except RequestError as error:
            refused = error
        except Exception as error:
            refused = failed(scope, error)
        else:
            return
        if started():  # a stream that broke off; nothing can be said any more
            return
        facts.setdefault("error", refused.code or error_type(refused.status))  # messages may quote a prompt
        if refused.param is not None:
            facts.setdefault("param", refused.param)
        answer = JSONResponse(
            self._error_content(refused), status_code=refused.status, headers=refused.headers()
        )
        await answer(scope, receive, send)

    def _is_of_a_page(self, path: str) -> bool:
        return any(path == page or path.startswith(f"{page}/") for page in self._pages)

    def _check_key(self, scope: Any) -> None:
        if self._key is None or scope["path"] in self._open:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, f"Bearer {self._key}".encode()):
            raise RequestError(
                "the API key is missing or wrong: send Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
            )

    def _tell(self, scope: Any, facts: dict[str, Any], status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in self._routes else "other"
        if self._metrics is not None:
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if status == 499:
                self._metrics.cancelled.inc()
            elif status >= 400:
                self._metrics.errors.labels(str(status)).inc()
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "ms": round(1000 * seconds, 1),
            "client": (scope.get("client") or ("",))[0],
            **facts,
        }
        REQUESTS.info("%s", json.dumps(line))
