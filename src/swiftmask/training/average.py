"""The averaged weights, which are the ones that are evaluated and kept."""

import copy

import torch
from torch import Tensor, nn

from swiftmask.training.sharding import local


class Average(nn.Module):
    """Exponential moving average of what a module trains, as `module`.

    Frozen parameters are the averaged module's own, not copies: a policy or a student that shares its base's
    memory goes on sharing it. The decay warms up, so that initial weights do not dominate short runs.
    """

    num_averaged: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
        self.module = copy.deepcopy(model, frozen)
        self._decay = decay
        # on the CPU: reading it must not wait for the device
        self.register_buffer("num_averaged", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of a finished step; the first ones are copied, as are buffers."""
        count = int(self.num_averaged)
        weight = 1.0 if count == 0 else 1 - min(self._decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(_trained(self.module), _trained(model), weight)
        for ours, current in zip(self.module.buffers(), model.buffers(), strict=True):
            ours.copy_(current)
        self.num_averaged += 1


def _trained(module: nn.Module) -> list[Tensor]:
    return [local(parameter) for parameter in module.parameters() if parameter.requires_grad]
