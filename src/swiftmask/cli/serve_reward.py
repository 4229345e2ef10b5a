"""`swiftmask serve-reward`: a reward in a process, and with packages, of its own."""

import os
import sys
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from importlib import import_module
from typing import TYPE_CHECKING, cast

from tyro.conf import Positional

from swiftmask.cli.loading import device_text
from swiftmask.cli.progress import note

if TYPE_CHECKING:
    import torch

    from swiftmask.rewards.http_server import Reward


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeReward:
    """Answer scores over HTTP: POST /score and GET /health, as docs/rewards.md describes them.

    There are no passwords: listen only where you trust the network.
    """

    reward: Positional[str]
    """hps, aesthetic, pick-score, clip-score, scenes-judge, scenes-reward, or MODULE:FUNCTION of your own,
    called with images [B, 3, H, W] in [0, 1] and prompts."""
    weights: str | None = None
    """Local file or folder of the weights; pick-score and clip-score also take a Hugging Face repo id."""
    clip: str | None = None
    """CLIP folder or repo id the weights go with: tokenizer and preprocessing; for aesthetic the network."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one of this machine's."""
    port: int = 8765
    """Port to listen on; 0 takes a free one."""
    device: str = "auto"
    """Where to score: cpu, cuda, mps, or auto (cuda where there is a GPU, else cpu)."""
    dtype: str = "float32"
    """Of the CLIP weights."""
    max_pictures: int = 256
    """Images a request may have."""
    max_megabytes: int = 64
    """Megabytes a request may have."""

    def run(self) -> int:
        """Load, then answer until interrupted."""
        with self.server() as server:
            address = f"http://{self.host}:{server.server_port}"
            print(f"{self.reward} at {address} (POST /score, GET /health); Ctrl-C ends it", flush=True)
            server.serve_forever()
        return 0

    def server(self) -> ThreadingHTTPServer:
        """Listens already. Errors: ValueError or FileNotFoundError naming the wrong name, file or number."""
        if self.max_pictures < 1 or self.max_megabytes < 1:
            raise ValueError("--max-pictures and --max-megabytes must be at least 1")
        if not self.host.strip():
            raise ValueError("--host is empty, which listens on every address: say 0.0.0.0 if that is meant")
        from swiftmask.api import device_named, dtype_named
        from swiftmask.rewards.http_server import Limits, RewardService, make_server

        device = device_named(self.device)
        dtype_named(self.dtype)  # complains, whatever the reward does with it
        limits = Limits(num_images=self.max_pictures, num_bytes=self.max_megabytes * 10**6)
        service = RewardService(reward=self._load(device), name=self.reward, device=device, limits=limits)
        server = make_server(service, host=self.host, port=self.port)
        note(f"{self.reward} on {device_text(device)}")
        return server

    def _load(self, device: "torch.device") -> "Reward":
        if self.reward in _CLIP_REWARDS:
            return _CLIP_REWARDS[self.reward](self)
        if self.weights is not None or self.clip is not None:
            raise ValueError(f"{self.reward} takes no --weights or --clip: {', '.join(_CLIP_REWARDS)} do")
        if ":" in self.reward:
            return import_reward(self.reward)
        return _scenes(self.reward, device)


def import_reward(name: str) -> "Reward":
    """MODULE:FUNCTION, of the working directory or installed. Errors: ValueError naming what is wrong."""
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"cannot import the reward {name!r} ({error}): expected MODULE:FUNCTION, installed or in "
            f"{os.getcwd()}"
        ) from error
    if not callable(function):
        raise ValueError(f"{name} is no function, but {type(function).__name__}")
    return cast("Reward", function)


def _hps(given: ServeReward) -> "Reward":
    from swiftmask.api import dtype_named
    from swiftmask.rewards.hps import PROCESSOR, load_hps

    return load_hps(_weights(given), processor=given.clip or PROCESSOR, dtype=dtype_named(given.dtype))


def _aesthetic(given: ServeReward) -> "Reward":
    from swiftmask.api import dtype_named
    from swiftmask.rewards.aesthetic import CLIP_LARGE, load_aesthetic

    return load_aesthetic(_weights(given), clip=given.clip or CLIP_LARGE, dtype=dtype_named(given.dtype))


def _pick_score(given: ServeReward) -> "Reward":
    from swiftmask.api import dtype_named
    from swiftmask.rewards.clip import PICK_SCORE, load_pick_score

    source = given.weights or PICK_SCORE
    return load_pick_score(source, processor=given.clip, dtype=dtype_named(given.dtype))


def _clip_score(given: ServeReward) -> "Reward":
    from swiftmask.api import dtype_named
    from swiftmask.rewards.clip import CLIP_LARGE, load_clip_score

    source = given.weights or CLIP_LARGE
    return load_clip_score(source, processor=given.clip, dtype=dtype_named(given.dtype))


_CLIP_REWARDS = {"hps": _hps, "aesthetic": _aesthetic, "pick-score": _pick_score, "clip-score": _clip_score}


def _weights(given: ServeReward) -> str:
    if given.weights is None:
        raise ValueError(f"{given.reward} needs --weights FILE; docs/rewards.md says where to download it")
    return given.weights


def _scenes(name: str, device: "torch.device") -> "Reward":
    from swiftmask.registry import suggestion
    from swiftmask.rewards.scenes import caption_reward, load_judge, load_reward

    readers = {"scenes-judge": load_judge, "scenes-reward": load_reward}
    if name not in readers:
        raise ValueError(f"unknown reward {name!r}{suggestion(name, [*_CLIP_REWARDS, *readers])}")
    return caption_reward(readers[name](device))
