"""A server that listens while tests ask it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def listening(server: Any) -> Iterator[str]:
    """Run a `ListeningServer`, or a front, in a thread; yields its address once it answers."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
