"""A server around an ASGI app: it listens when it is made, and `serve_forever` answers until `shutdown`.

SIGTERM and Ctrl-C end it: it takes no new connection, finishes what runs, and returns. A second Ctrl-C ends
it at once.
"""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import uvicorn

from swiftmask.core.settings import first_line
from swiftmask.serve.limits import Limits, guarded_protocol

BACKLOG = 128
"""Connections that the system holds before they are accepted."""

_LONGEST_HEAD = 16 * 2**10
"""Bytes of a request's line and headers."""


class ListeningServer:
    """An ASGI app on a socket.

    Args:
        bound: a socket of `bound_socket`.
        grace_s: seconds that running requests have after a signal.

    Errors: ValueError if another process listens there.
    """

    def __init__(self, app: Any, bound: socket.socket, *, limits: Limits, grace_s: float = 60.0) -> None:
        host, self.server_port = bound.getsockname()[:2]
        self._socket = bound
        try:
            bound.listen(BACKLOG)
        except OSError as error:
            bound.close()
            raise _cannot_listen(host, self.server_port, error) from error
        config = uvicorn.Config(
            app,
            http=guarded_protocol(limits),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=_LONGEST_HEAD,
            timeout_graceful_shutdown=max(1, round(grace_s)),
        )
        self._server = _Server(config)
        self._done = threading.Event()
        self._done.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def started(self) -> bool:
        """Whether it answers."""
        return self._server.started

    def serve_forever(self, on_start: Callable[[], None] | None = None) -> None:
        """Answer until `shutdown`, or a signal in the main thread.

        Args:
            on_start: called when the first request can be answered.

        Errors: KeyboardInterrupt for Ctrl-C.
        """
        self._server.on_start = on_start
        self._done.clear()
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        finally:
            self._done.set()
        if self._server.interrupted:
            raise KeyboardInterrupt

    def shutdown(self) -> None:
        """End `serve_forever` in another thread, after the requests that run."""
        self._server.should_exit = True
        self._done.wait()


class _Server(uvicorn.Server):
    """Uvicorn's server, which ends well after SIGTERM instead of raising the signal again."""

    interrupted = False
    on_start: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.on_start is not None:
            self.on_start()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self._end) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _end(self, number: int, frame: object) -> None:
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.should_exit = True
        self.interrupted = self.interrupted or number == signal.SIGINT


def bound_socket(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A socket at an address, which nobody can connect to yet: before anything is loaded, it is known
    whether the address is free.

    Args:
        port: 0 takes a free one.

    Errors: ValueError if it cannot listen there, or for an empty host, which would mean every address.
    """
    if not host.strip():
        raise ValueError("the host is empty, which listens on every address: say 0.0.0.0 if that is meant")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family)
    except (OSError, OverflowError, UnicodeError, TypeError) as error:
        raise _cannot_listen(host, port, error) from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except (OSError, OverflowError, TypeError) as error:
        with suppress(OSError):
            listening.close()
        raise _cannot_listen(host, port, error) from error
    return listening


def _cannot_listen(host: str, port: int, error: Exception) -> ValueError:
    return ValueError(f"cannot listen on {host}:{port} ({first_line(error)}): choose another host or port")
