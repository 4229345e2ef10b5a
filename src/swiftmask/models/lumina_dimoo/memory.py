"""Whether the model fits, asked before anything is read (eight billion weights take minutes to load), and
whether a decode does, asked before it starts.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch

from swiftmask.core.portions import images_together
from swiftmask.core.vq_codec import VQCodec
from swiftmask.models.lumina_dimoo.network import BackboneConfig
from swiftmask.models.lumina_dimoo.offload import NUM_PLACES

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class CodecNeed:
    """What the codec takes, in float32. Defaults are the released one's.

    Attributes:
        weights: bytes of them.
        downscale: pixels along a code's side.
        per_pixel: bytes at full resolution while it decodes: in its last level the input of a residual block,
            normalised and through the activation, or four maps of the first width, whichever is more.
        num_codes: of the codebook, over which the head's logits go.
    """

    weights: int = 146_244_675 * 4
    downscale: int = 16
    per_pixel: int = 3 * 256 * 4
    num_codes: int = 8192

    @classmethod
    def of(cls, codec: VQCodec) -> Self:
        """Of a codec, which may be on the meta device."""
        weights = sum(p.numel() for p in codec.parameters()) * 4
        first, before = codec.config.block_out_channels[:2]
        per_pixel = max(4 * first, 3 * before) * 4
        return cls(weights, codec.config.downscale, per_pixel, codec.config.num_vq_embeddings)


RELEASED_CODEC = CodecNeed()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What is decoded at once. A shortcut's step takes less than a full one, so it adds nothing.

    Attributes:
        batch: images.
        branches: 2 under guidance, else 1.
        num_prompt: tokens of the longest prompt.
        cached: whether ML-Cache keeps the keys and values of every block.
    """

    batch: int = 1
    branches: int = 2
    num_prompt: int = 128
    cached: bool = False

    def __str__(self) -> str:
        guided = " with guidance" if self.branches == 2 else ""
        return f"{self.batch} image{'s' * (self.batch > 1)}{guided}{' and ml-cache' * self.cached}"


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on the device, for weights and beside them for a decode, and bytes of host memory for the blocks
    that wait there.
    """

    weights: int
    working: int
    host: int = 0

    @property
    def total(self) -> int:
        """On the device."""
        return self.weights + self.working


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be loaded, and how.

    Attributes:
        grid: rows and columns of codes of an image.
        blocks_on_device: the others wait in host memory (offload.py); None keeps all on the device.
        draw: what is to be decoded.
    """

    config: BackboneConfig
    grid: tuple[int, int]
    dtype: torch.dtype
    codec: CodecNeed = RELEASED_CODEC
    blocks_on_device: int | None = None
    draw: Draw = Draw()

    @property
    def num_waiting(self) -> int:
        depth = self.config.depth
        return 0 if self.blocks_on_device is None else depth - self.blocks_on_device

    @property
    def size(self) -> str:
        height, width = (self.codec.downscale * side for side in self.grid)
        return f"{height}x{width}"


def estimate(plan: Plan) -> Need:
    """Of weights, codec and one decode; the weights of a shortcut are not in it."""
    config, itemsize = plan.config, plan.dtype.itemsize
    matrices = [3 * config.width**2, config.width**2] + [
        config.width * config.mlp_width * count for count in (2, 1)
    ]
    num_blocks = config.depth - plan.num_waiting + min(NUM_PLACES, plan.num_waiting)
    weights = num_blocks * sum(matrices) + 2 * config.vocabulary_size * config.width
    # PyTorch pins host memory in powers of two.
    host = plan.num_waiting * sum(1 << (count * itemsize - 1).bit_length() for count in matrices)
    return Need(weights * itemsize + plan.codec.weights, working_bytes(plan), host)


def working_bytes(plan: Plan) -> int:
    """At the peak of a decode, beside the weights: in a block, in the head, or in the codec."""
    config, draw, itemsize = plan.config, plan.draw, plan.dtype.itemsize
    num_tokens = plan.grid[0] * plan.grid[1]
    rows = draw.batch * draw.branches * (plan.grid[0] * (plan.grid[1] + 1) + 4 + draw.num_prompt)
    features = rows * config.width * itemsize
    cache = 2 * config.depth * features * draw.cached
    mlp = rows * (4 * config.mlp_width + 8 * config.width) * itemsize
    attention = rows * (5 * (itemsize + 4) * config.width + 8 * config.head_width)  # float32 rotations
    head = 16 * draw.batch * num_tokens * plan.codec.num_codes  # float32 logits, their softmax and sums
    # Features and cache of the step before live until those of this step are complete.
    backbone = 2 * (features + cache) + max(mlp, attention, head)
    num_pixels = num_tokens * plan.codec.downscale**2
    together = min(draw.batch, images_together(num_pixels))
    maps = together * plan.codec.per_pixel * 21 // 20  # a twentieth for maps of earlier levels
    decoder = num_pixels * (maps + draw.batch * 2 * 3 * 4)
    return max(backbone, decoder)


def check_fits(plan: Plan, device: torch.device) -> None:
    """Errors: ValueError saying what is needed, what is free, and what would fit; or for blocks that there
    are not, or that have nowhere else to wait.
    """
    depth, resident = plan.config.depth, plan.blocks_on_device
    if resident is not None and (device.type == "cpu" or not 0 <= resident <= depth):
        raise ValueError(
            f"blocks_on_device must lie in 0..{depth} and needs a device other than the CPU, got {resident} "
            f"for {device}"
        )
    need = estimate(plan)
    for place, wanted in ((device, need.total), (torch.device("cpu"), need.host)):
        free = free_bytes(place)
        if free is not None and wanted > free:
            raise ValueError(_complaint(plan, need, device, place, free))


def check_room(plan: Plan, device: torch.device) -> None:
    """Errors: ValueError saying what fits, if the decode of a loaded model needs more than is free."""
    wanted, free = working_bytes(plan), free_bytes(device)
    if free is not None and wanted > free:
        raise ValueError(
            f"decoding {plan.draw} at {plan.size} needs about {_gb(wanted)} on {device} beside the weights, "
            f"but {_gb(free)} are free: {_smaller(plan, free)}"
        )


def _smaller(plan: Plan, free: int) -> str:
    """The largest decode that fits: fewer images, then no cache, then no guidance."""
    one = replace(plan.draw, batch=1)
    ways = {"": one, " without ml-cache": replace(one, cached=False)}
    ways[" without ml-cache and guidance"] = replace(one, cached=False, branches=1)
    for how, draw in ways.items():
        plans = [replace(plan, draw=replace(draw, batch=n)) for n in range(1, plan.draw.batch + 1)]
        if most := sum(working_bytes(each) <= free for each in plans):
            return f"take {most} at a time{how}"
    return "take a smaller size, or free some memory"


def free_bytes(device: torch.device) -> int | None:
    """What is free on a CUDA device, or of this machine's memory; None where the system does not tell."""
    if device.type == "cuda" and torch.cuda.is_available():
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu" or not _MEMINFO.exists():
        return None
    lines = (line.split() for line in _MEMINFO.read_text().splitlines())
    free = next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), None)
    limit = _left_in_container()
    return min((amount for amount in (free, limit) if amount is not None), default=None)


def _left_in_container() -> int | None:
    """What a container's limit leaves. Cached files that the kernel would drop do not count as used."""
    limit, used, parts = (_CGROUP / name for name in ("memory.max", "memory.current", "memory.stat"))
    if not limit.exists() or not used.exists() or not limit.read_text().strip().isdecimal():
        return None
    lines = [line.split() for line in parts.read_text().splitlines()] if parts.exists() else []
    droppable = next((int(words[1]) for words in lines if words[0] == "inactive_file"), 0)
    return max(0, int(limit.read_text()) - int(used.read_text()) + droppable)


def _complaint(plan: Plan, need: Need, device: torch.device, place: torch.device, free: int) -> str:
    what = f"{_gb(need.total)} on {device} ({_gb(need.weights)} of weights, {_gb(need.working)} to generate "
    waiting = f" and {_gb(need.host)} of host memory for {plan.num_waiting} blocks" if need.host else ""
    precision = str(plan.dtype).removeprefix("torch.")
    return (
        f"Lumina-DiMOO as {precision} needs about {what}{plan.size}){waiting}, but {_gb(free)} are "
        f"free on {place}: {_mend(plan, device)}"
    )


def _mend(plan: Plan, device: torch.device) -> str:
    """The smallest change that fits: half the precision, then blocks in host memory, then the CPU."""
    half = replace(plan, dtype=torch.bfloat16, blocks_on_device=None)
    total = estimate(half).total
    if plan.dtype.itemsize > 2 and _fits(half, device):
        return f"take dtype=torch.bfloat16 ({_gb(total)})"
    if device.type != "cpu":
        for resident in range(plan.config.depth - 1, -1, -1):
            if _fits(replace(half, blocks_on_device=resident), device):
                return (
                    f"take blocks_on_device={resident} with dtype=torch.bfloat16 (the others wait on the CPU)"
                )
        on_cpu = free_bytes(torch.device("cpu"))
        if on_cpu is not None and total <= on_cpu:
            return f"take device='cpu' with dtype=torch.bfloat16 ({_gb(total)}, {_gb(on_cpu)} are free there)"
    return f"take a device with {_gb(total)} (as bfloat16), or free some"


def _fits(plan: Plan, device: torch.device) -> bool:
    need, free, on_host = estimate(plan), free_bytes(device), free_bytes(torch.device("cpu"))
    return (free is None or need.total <= free) and (on_host is None or need.host <= on_host)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
