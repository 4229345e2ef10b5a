"""`swiftmask serve-reward`: a reward in a process, and with packages, of its own."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tyro.conf import Positional

from swiftmask.cli.loading import device_text
from swiftmask.cli.progress import note

if TYPE_CHECKING:
    import torch

    from swiftmask.rewards.named import Reward
    from swiftmask.serve.listening import ListeningServer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeReward:
    """Answer scores over HTTP: POST /score and GET /health, as docs/rewards.md describes them.

    There are no passwords: listen only where you trust the network.
    """

    reward: Positional[str]
    """hps, aesthetic, pickscore, clip, scenes-judge, scenes-reward, or MODULE:FUNCTION of your own,
    called with images [B, 3, H, W] in [0, 1] and prompts."""
    weights: str | None = None
    """Local file or folder of the weights; pickscore and clip also take a Hugging Face repo id."""
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
    max_images: int = 256
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

    def server(self) -> "ListeningServer":
        """Listens already. Errors: ValueError or FileNotFoundError naming the wrong name, file or number."""
        for option, given in (("--weights", self.weights), ("--clip", self.clip)):
            if given == "":
                raise ValueError(f"{option} is empty: name a file or a folder, or leave it out")
        if not self.host.strip():
            raise ValueError("--host is empty, which listens on every address: say 0.0.0.0 if that is meant")
        from swiftmask.core.optional import library

        for needed in ("fastapi", "uvicorn"):
            library(needed, "swiftmask serve-reward")
        from swiftmask.api import device_named, dtype_named
        from swiftmask.serve.limits import Limits
        from swiftmask.serve.rewards import RewardService, make_server

        device = device_named(self.device)
        dtype_named(self.dtype)  # complains, whatever the reward does with it
        service = RewardService(
            reward=self._load(device),
            name=self.reward,
            device=device,
            limits=Limits(num_bytes=self.max_megabytes * 10**6),
            max_images=self.max_images,
        )
        server = make_server(service, host=self.host, port=self.port)
        note(f"{self.reward} on {device_text(device)}")
        return server

    def _load(self, device: "torch.device") -> "Reward":
        from swiftmask.api import dtype_named
        from swiftmask.rewards.named import Entry, load

        entry = Entry.parsed(self.reward)
        if self.weights is not None:
            entry = replace(entry, path=self.weights)
        return load(entry, clip=self.clip, dtype=dtype_named(self.dtype), device=device)
