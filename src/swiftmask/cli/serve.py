"""`swiftmask serve`: images over HTTP, as OpenAI's clients ask for them."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tyro.conf import Positional

from swiftmask.cli import measure
from swiftmask.cli.loading import enter

if TYPE_CHECKING:
    from swiftmask.pipeline import Pipeline
    from swiftmask.serve.app import Page, ServeSettings
    from swiftmask.serve.catalogue import Catalogue
    from swiftmask.serve.listening import ListeningServer

KEY_VARIABLE = "SWIFTMASK_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """Answer images over HTTP: POST /v1/images/generations and /v1/images/edits, GET /v1/models, /health and
    /metrics, as docs/serving.md describes them. Needs the extra serve.

    It listens on this machine alone unless --host says otherwise. SIGTERM finishes what runs.
    """

    model: Positional[str]
    """Bundled name (see swiftmask models), model folder, released file, or Hugging Face repo id."""
    shortcut: tuple[str, ...] = ()
    """Shortcuts to load beside it: bundled names, folders or files; auto takes the model's own. Requests
    choose by the model's name, as in maskgit-scenes+shortcut."""
    caching: tuple[measure.Caching, ...] = ()
    """Training-free baselines to offer."""
    marval: tuple[str, ...] = ()
    """MARVAL students to load; auto takes the model's own."""
    speed_rl: tuple[str, ...] = ()
    """Speed-RL weights to load; auto takes the model's own."""
    preset: tuple[Path, ...] = ()
    """Files of settings that swiftmask tune found; requests choose one by the file's name."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one of this machine's."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    max_batch: int = 16
    """Images of a decode."""
    max_wait_ms: float = 10.0
    """Milliseconds that a request waits for others to share its decode."""
    max_queue: int = 256
    """Images that wait; more are refused with 429."""
    max_images: int = 16
    """Images a request may ask for."""
    max_prompt: int = 2000
    """Letters of a prompt."""
    max_steps: int = 64
    """Decode steps a request may ask for."""
    max_megabytes: int = 16
    """Megabytes a request may have."""
    max_connections: int = 64
    """Connections that are open at once."""
    timeout_s: float = 120.0
    """Seconds from a request to its answer."""
    api_key_file: Path | None = None
    """File of the API key that requests must carry; SWIFTMASK_API_KEY in the environment does the same."""
    log_prompts: bool = False
    """Log what was asked for, too."""
    codec: Path | None = None
    """Tokenizer of a released file."""
    text_encoder: str | None = None
    """Folder or Hugging Face repo id of another CLIP text encoder, for Meissonic as released."""
    dtype: str = "auto"
    """float32, bfloat16 or float16; auto is the model's own."""
    device: str = "auto"
    """cpu, cuda or mps; auto is cuda where there is a GPU, else cpu."""
    blocks_on_device: int | None = None
    """Of Lumina-DiMOO on a card it does not fit: blocks that stay there, while the others wait in memory."""
    compile: str | None = None
    """Compile the repeated blocks with torch.compile; a mode of it, or no name for its default."""

    engine: Literal["ray"] | None = None
    """ray: replicas of the server on this machine, or on the Ray cluster that it belongs to (extra ray,
    docs/cluster.md)."""
    replicas: int = 1
    """The most replicas of --engine ray; they are started when requests wait."""
    min_replicas: int = 1
    """Replicas that stay when no request waits."""
    gpus_per_replica: float | None = None
    """GPUs of each of them (default: 1 where the cluster has GPUs)."""
    shown_path: ClassVar[str] = "/v1"

    def run(self) -> int:
        """Load, then answer until interrupted."""
        if self.engine is None and (self.replicas, self.min_replicas, self.gpus_per_replica) != (1, 1, None):
            raise ValueError("--replicas, --min-replicas and --gpus-per-replica need --engine ray")
        with self.opened() as server, _requests_on_stdout():
            shown = f"[{self.host}]" if ":" in self.host else self.host
            line = f"http://{shown}:{server.server_port}{self.shown_path} answers; Ctrl-C ends it\n"
            server.serve_forever(lambda: _say(line))
        return 0

    @contextmanager
    def opened(self) -> "Iterator[ListeningServer]":
        """A server that listens already; with --engine ray, before as many replicas as asked for."""
        if self.engine is None:
            with self.server() as server:
                yield server
            return
        self._check()
        if self.pages():
            raise ValueError("a page keeps its state in one process: leave out --engine ray")
        from swiftmask.serve.listening import ListeningServer, bound_socket
        from swiftmask.serve.replicas import Replicas, deployed

        replicas = Replicas(
            most=self.replicas,
            fewest=self.min_replicas,
            num_gpus=self.gpus_per_replica,
            busy=self.max_batch,
        )
        settings, bound = self._settings(), bound_socket(self.host, self.port)
        build = partial(app_in, os.getcwd(), self, settings)
        with deployed(build, replicas, limits=settings.limits, timeout_s=self.timeout_s) as front:
            with ListeningServer(front, bound, limits=settings.limits, grace_s=self.timeout_s) as server:
                yield server

    def server(self) -> "ListeningServer":
        """Listens already. Errors: ValueError or FileNotFoundError naming the wrong name, file or number."""
        self._check()
        from swiftmask.serve.listening import ListeningServer, bound_socket

        settings, bound = self._settings(), bound_socket(self.host, self.port)
        return ListeningServer(self.app(settings), bound, limits=settings.limits, grace_s=self.timeout_s)

    def app(self, settings: "ServeSettings") -> Any:
        """The ASGI app with the loaded model."""
        from swiftmask.serve.app import image_app

        pages = self.pages()
        return image_app(self._catalogue(self._base()), settings, pages=pages)

    def _check(self) -> None:
        """What is wrong before anything is loaded."""
        from swiftmask.core.optional import library

        for needed in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
            library(needed, "swiftmask serve")
        if not self.host.strip():
            raise ValueError("--host is empty, which listens on every address: say 0.0.0.0 if that is meant")
        from swiftmask.evaluate.presets import read_preset

        for path in self.preset:
            read_preset(path)

    def _settings(self) -> "ServeSettings":
        from swiftmask.serve.app import ServeSettings
        from swiftmask.serve.batches import BatchLimits
        from swiftmask.serve.limits import Limits
        from swiftmask.serve.requests import RequestLimits

        return ServeSettings(
            limits=Limits(
                num_bytes=self.max_megabytes * 10**6,
                num_connections=self.max_connections,
                deadline_s=min(self.timeout_s, 60.0),
                idle_s=min(self.timeout_s, 30.0),
            ),
            requests=RequestLimits(
                max_images=self.max_images, max_prompt=self.max_prompt, max_steps=self.max_steps
            ),
            batches=BatchLimits(
                max_batch=self.max_batch, max_wait_s=self.max_wait_ms / 1000, max_queue=self.max_queue
            ),
            timeout_s=self.timeout_s,
            api_key=self._key(),
            log_prompts=self.log_prompts,
        )

    def pages(self) -> "Sequence[Page]":
        """Pages in the same server: none here. Errors: ValueError for what they lack."""
        return ()

    def _base(self) -> "Pipeline":
        from swiftmask.api import load
        from swiftmask.cli.loading import say_where

        base = load(
            self.model,
            dtype=self.dtype,
            device=self.device,
            codec=self.codec,
            text_encoder=self.text_encoder,
            blocks_on_device=self.blocks_on_device,
            compile=self.compile or False,
        )
        say_where(base)
        return base

    def _catalogue(self, base: "Pipeline") -> "Catalogue":
        from swiftmask.serve.catalogue import Accelerators, Catalogue

        accelerators = Accelerators(
            shortcut=[measure.own(self.model, each, "shortcut") for each in self.shortcut],
            caching=self.caching,
            marval=[measure.own(self.model, each, "marval") for each in self.marval],
            speed_rl=[measure.own(self.model, each, "speed_rl") for each in self.speed_rl],
            presets=self.preset,
        )
        return Catalogue.of(base, accelerators)

    def _key(self) -> str | None:
        """Errors: ValueError for an empty key; FileNotFoundError."""
        key = os.environ.get(KEY_VARIABLE)
        if self.api_key_file is not None:
            if not self.api_key_file.is_file():
                raise FileNotFoundError(f"no such file of an API key: {self.api_key_file}")
            key = self.api_key_file.read_text(errors="replace").strip()
        if key is not None and (not key or not key.isascii() or not key.isprintable() or " " in key):
            source = KEY_VARIABLE if self.api_key_file is None else self.api_key_file
            raise ValueError(f"{source} holds no API key: expected letters, digits and signs without spaces")
        return key


def app_in(folder: str, command: Serve, settings: "ServeSettings") -> Any:
    """The app in a replica, which works where the command was started."""
    enter(folder)
    return command.app(settings)


def _say(line: str) -> None:
    sys.stderr.write(line)
    sys.stderr.flush()


@contextmanager
def _requests_on_stdout() -> Iterator[None]:
    """A line of JSON for each request; what went wrong goes to stderr."""
    requests = logging.getLogger("swiftmask.serve.requests")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    requests.addHandler(handler)
    requests.setLevel(logging.INFO)
    requests.propagate = False
    try:
        yield
    finally:
        requests.removeHandler(handler)
        requests.propagate = True
