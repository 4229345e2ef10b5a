"""What a client may take of a server: bytes, seconds, connections. Shared by every server of the package.

Bodies are read here and nowhere else (`BodyReader`), a few at a time, so that memory is bounded: at most
`num_readers` bodies of `num_bytes`. Connections are watched by `guarded_protocol` below HTTP, where a client
that connects and says nothing, or never reads its answer, is dropped.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from swiftmask.serve.errors import RequestError

Receive = Callable[[], Awaitable[Any]]

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)
_MOST_LENGTH_DIGITS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one server.

    Attributes:
        num_bytes: of a request's body.
        idle_s: seconds a client may be silent while its request or its answer is on the way, and that a
            request waits for its turn to be read.
        deadline_s: seconds from connecting to the end of the headers, and from there to the last byte of the
            body.
        num_readers: bodies that are read and unpacked at once; others wait.
        num_connections: connections that are open at once; others are told to come again.
    """

    num_bytes: int = 64 * 2**20
    idle_s: float = 60.0
    deadline_s: float = 120.0
    num_readers: int = 4
    num_connections: int = 64


class BodyReader:
    """Reads bodies within the limits, a few at once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._readers = asyncio.Semaphore(limits.num_readers)

    @asynccontextmanager
    async def body(self, headers: Any, receive: Receive) -> AsyncIterator[bytes]:
        """The body of a request. Its place among the readers is free again when the block ends.

        Errors: RequestError: 411 without a length, 413 above the limit, 408 for a sender that is too slow,
        503 where too many wait, 499 if the sender is gone.
        """
        length = _declared_length(headers)
        if length is not None and length > self._limits.num_bytes:
            await self._discard(receive, length)
            raise too_large(length, self._limits.num_bytes)
        try:
            async with asyncio.timeout(self._limits.idle_s):
                await self._readers.acquire()
        except TimeoutError:
            raise RequestError("too many requests wait: try again later", status=503, retry_after=1) from None
        try:
            try:
                async with asyncio.timeout(self._limits.deadline_s):
                    content = await self._read(receive, length)
            except TimeoutError:
                raise RequestError("the sender took too long", status=408, close=True) from None
            yield content
        finally:
            self._readers.release()

    async def _read(self, receive: Receive, length: int | None) -> bytes:
        content = bytearray()
        while True:
            async with asyncio.timeout(self._limits.idle_s):  # Python 3.11's wait_for loses the deadline
                message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError("the sender is gone", status=499, close=True)
            content += message.get("body", b"")
            if len(content) > self._limits.num_bytes:
                await self._discard(receive, self._limits.num_bytes)
                raise too_large(len(content), self._limits.num_bytes)
            if not message.get("more_body", False):
                if length is not None and len(content) != length:
                    raise RequestError(f"the body has {len(content)} bytes, not {length}", close=True)
                return bytes(content)

    async def _discard(self, receive: Receive, length: int) -> None:
        """Read some of what nobody wants: a sender still sending would never see the answer."""
        left = min(length, 4 * self._limits.num_bytes)
        with suppress(TimeoutError):
            async with asyncio.timeout(min(self._limits.deadline_s, self._limits.idle_s)):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return


def too_large(num_bytes: int, most: int) -> RequestError:
    """The error for a body above the limit."""
    return RequestError(
        f"the body has {num_bytes} bytes, at most {most} are read: send less", status=413, close=True
    )


def _declared_length(headers: Any) -> int | None:
    """What Content-Length says; None for a body in chunks, which is counted as it comes."""
    text = headers.get("content-length")
    if text is None:
        if "chunked" in headers.get("transfer-encoding", ""):
            return None
        raise RequestError("a Content-Length is needed", status=411, close=True)
    if not text.isdecimal() or len(text) > _MOST_LENGTH_DIGITS:
        raise RequestError("a Content-Length is needed", status=411, close=True)
    return int(text)


class _Guarded(H11Protocol):
    """Uvicorn's protocol with the limits of a connection."""

    limits: Limits
    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.num_connections:
            transport.write(_BUSY)
            transport.close()
            return
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        answered = self.cycle is None or self.cycle.response_complete
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting("_head")
        elif answered and self._head is None:
            self._expect_head()

    def on_response_complete(self) -> None:
        self._stop_waiting("_head")
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_waiting("_unread")
        self._unread = self.loop.call_later(self.limits.idle_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_waiting("_unread")
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting("_head")
        super().connection_lost(exc)  # resumes writing, which stops the other timer

    def _expect_head(self) -> None:
        self._head = self.loop.call_later(self.limits.deadline_s, self.transport.abort)

    def _stop_waiting(self, which: str) -> None:
        timer = getattr(self, which)
        if timer is not None:
            timer.cancel()
            setattr(self, which, None)


def guarded_protocol(limits: Limits) -> type[H11Protocol]:
    """A protocol for `uvicorn.Config(http=...)` that watches each connection.

    A connection above the limit gets 503. One that has not sent the whole head of a request within
    `deadline_s`, or does not read its answer for `idle_s`, is dropped.
    """
    return type("Guarded", (_Guarded,), {"limits": limits})
