"""Sharded training: gradients, optimizer state and averaged weights are split over the processes (FSDP2).

The weights are gathered for the length of a step, because methods read them outside a forward pass, too: to
generate the images they learn from. Accelerate's own FSDP2 is this call of `fully_shard`, but it wraps
nothing on CPUs and differently inside each network.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

if TYPE_CHECKING:  # importing them takes seconds, and without them nothing is sharded
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def shard(module: nn.Module, accelerator: Accelerator) -> None:
    """Split what `module` trains over all processes; frozen parameters stay whole, and shared."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    frozen = {parameter for parameter in module.parameters() if not parameter.requires_grad}
    fully_shard(module, mesh=mesh, ignored_params=frozen)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """The weights whole inside, split again at the end; nothing for a module that is not sharded."""
    sharded = _sharded(module)
    if sharded is None:
        yield
        return
    sharded.unshard()
    try:
        yield
    finally:
        sharded.reshard()


@contextmanager
def summed_later(accelerator: Accelerator, model: nn.Module, later: bool) -> Iterator[None]:
    """Within, gradients are kept to be summed over processes by a later pass of the same step."""
    sharded = _sharded(model)
    if sharded is not None:
        sharded.set_requires_gradient_sync(not later)
        sharded.set_reshard_after_backward(False)
    if not later or sharded is not None:
        yield
        return
    with accelerator.no_sync(model):
        yield


def unsharded(module: nn.Module) -> nn.Module:
    """The module with whole weights, for good."""
    sharded = _sharded(module)
    if sharded is not None:
        sharded.unshard()
    return module


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; all of one that is not split."""
    return tensor.to_local() if _is_split(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Every process must ask for it."""
    return tensor.full_tensor() if _is_split(tensor) else tensor


def split_like(tensor: Tensor, example: Tensor) -> Tensor:
    """A whole tensor, the same in every process, on the device of `example` and split as that is."""
    placed = tensor.to(example.device)
    if not _is_split(example):
        return placed
    from torch.distributed.tensor import distribute_tensor

    with torch.no_grad():
        return distribute_tensor(placed, example.device_mesh, example.placements)


def _sharded(module: nn.Module) -> "FSDPModule | None":
    """The module, if it is sharded; nothing is where the library that shards was never imported."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    found: Any = module
    return found if fsdp is not None and isinstance(module, fsdp.FSDPModule) else None


def _is_split(tensor: Tensor) -> "TypeIs[DTensor]":
    found = sys.modules.get("torch.distributed.tensor")
    return found is not None and isinstance(tensor, found.DTensor)
