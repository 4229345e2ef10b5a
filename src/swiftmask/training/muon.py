"""Muon (Jordan et al., 2024): momentum whose matrices are orthogonalised before they are added.

torch's own takes one matrix after the other, in bfloat16, which most CPUs emulate (docs/log.md), and no
convolutions. This one takes all matrices of a shape at once, in float32 on a CPU.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_MOMENTUM = 0.95
_ITERATIONS, _COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)
"""Of the quintic that moves singular values near one."""


class Muon(Optimizer):
    """Nesterov momentum, decoupled weight decay, and rates that are comparable with AdamW's: at rate 1 an
    update has about the root mean square 0.2 (Liu et al., arXiv 2502.16982).

    Args:
        matrices: the filters [out, in, height, width] of a convolution are one of `out` rows, as in the
            published code.
    """

    def __init__(self, matrices: list[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of every matrix that has a gradient; a closure is not called."""
        for group in self.param_groups:
            trained = [matrix for matrix in group["params"] if matrix.grad is not None]
            if trained:
                self._step(group, trained, [matrix.grad for matrix in trained])

    def _step(self, group: dict[str, Any], trained: list[Tensor], gradients: list[Tensor]) -> None:
        momenta = [self._momentum(matrix) for matrix in trained]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        updates = torch._foreach_lerp(gradients, momenta, _MOMENTUM)
        torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
        places_of: dict[torch.Size, list[int]] = defaultdict(list)
        for place, matrix in enumerate(trained):
            places_of[matrix.shape].append(place)
        for shape, places in places_of.items():
            updates_NRC = torch.stack([updates[place].flatten(1) for place in places])
            found = orthogonalised(updates_NRC).unflatten(2, shape[1:]).unbind()
            rate = group["lr"] * 0.2 * math.sqrt(max(updates_NRC.shape[1:]))
            torch._foreach_add_([trained[place] for place in places], found, alpha=-rate)

    def _momentum(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]


def orthogonalised(matrices_NRC: Tensor) -> Tensor:
    """Matrices with singular values moved near one, by Newton-Schulz iterations; [N, R, C]."""
    a, b, c = _COEFFICIENTS
    is_tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    wide = matrices_NRC.mT if is_tall else matrices_NRC
    wide = wide.to(torch.float32 if wide.device.type == "cpu" else torch.bfloat16)
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide.mT if is_tall else wide).to(matrices_NRC.dtype)
