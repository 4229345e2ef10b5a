"""Whether the model fits, asked before anything is read: eight billion weights take minutes to load."""

from dataclasses import dataclass
from pathlib import Path

import torch

from swiftmask.models.lumina_dimoo.layout import PATCH
from swiftmask.models.lumina_dimoo.network import BackboneConfig

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_CODEC_BYTES = 146_244_675 * 4
_CODEC_BYTES_PER_PIXEL = 3 * 128 * 4
"""Three maps of the codec's first width, at full resolution, in float32."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes for the weights, and beside them for drawing one picture."""

    weights: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.working


def estimate(config: BackboneConfig, grid: tuple[int, int], dtype: torch.dtype) -> Need:
    """For both guidance branches of one picture; codec included."""
    layer = 4 * config.width**2 + 3 * config.width * config.mlp_width
    weights = config.depth * layer + 2 * config.vocabulary_size * config.width
    rows = 2 * (grid[0] * (grid[1] + 1) + 128)
    working = rows * (2 * config.mlp_width + 6 * config.width) * dtype.itemsize
    decoder = grid[0] * grid[1] * PATCH**2 * _CODEC_BYTES_PER_PIXEL
    return Need(weights * dtype.itemsize + _CODEC_BYTES, max(working, decoder))


def check_fits(
    config: BackboneConfig, grid: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    """Errors: ValueError saying what is needed, what is free, and what would fit."""
    free = free_bytes(device)
    need = estimate(config, grid, dtype)
    if free is None or need.total <= free:
        return
    raise ValueError(
        f"Lumina-DiMOO as {_name(dtype)} needs about {_gb(need.total)} on {device} ({_gb(need.weights)} of "
        f"weights, {_gb(need.working)} to draw {grid[0] * PATCH}x{grid[1] * PATCH}), but {_gb(free)} are "
        f"free: {_mend(config, grid, dtype, device, free)}"
    )


def free_bytes(device: torch.device) -> int | None:
    """What is free on a CUDA device, or of this machine's memory; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu" or not _MEMINFO.exists():
        return None
    lines = (line.split() for line in _MEMINFO.read_text().splitlines())
    free = next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), None)
    limit = _left_in_container()
    return min((amount for amount in (free, limit) if amount is not None), default=None)


def _left_in_container() -> int | None:
    limit, used = (_CGROUP / name for name in ("memory.max", "memory.current"))
    if not limit.exists() or not used.exists() or not limit.read_text().strip().isdecimal():
        return None
    return max(0, int(limit.read_text()) - int(used.read_text()))


def _mend(
    config: BackboneConfig, grid: tuple[int, int], dtype: torch.dtype, device: torch.device, free: int
) -> str:
    """The smallest change that fits: half the precision, then the CPU."""
    half = estimate(config, grid, torch.bfloat16)
    if dtype.itemsize > 2 and half.total <= free:
        return f"take dtype=torch.bfloat16 ({_gb(half.total)})"
    on_cpu = free_bytes(torch.device("cpu"))
    if device.type != "cpu" and on_cpu is not None and half.total <= on_cpu:
        return (
            f"take device='cpu' with dtype=torch.bfloat16 ({_gb(half.total)}, {_gb(on_cpu)} are free there)"
        )
    return f"take a device with {_gb(half.total)} (as bfloat16), or free some"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
