"""Muon (Jordan et al., 2024) in few kernels, and quick on a CPU: torch's optimizer with its own step."""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Muon


class BatchedMuon(Muon):
    """torch's Muon, orthogonalising all matrices of one shape at once, and in float32 on a CPU.

    torch's takes one matrix after the other, in bfloat16, which most CPUs emulate (docs/log.md). State,
    momentum, coefficients and weight decay are those of torch's class. Rates are comparable with AdamW's
    (torch's "match_rms_adamw").
    """

    def __init__(self, matrices: list[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update of every matrix that has a gradient; a closure is not called."""
        for group in self.param_groups:
            trained = [matrix for matrix in group["params"] if matrix.grad is not None]
            if trained:
                self._step(group, trained, [matrix.grad for matrix in trained])

    def _step(self, group: dict[str, Any], trained: list[Tensor], gradients: list[Tensor]) -> None:
        momenta = [self._momentum(matrix) for matrix in trained]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
        places_of: dict[torch.Size, list[int]] = defaultdict(list)
        for place, matrix in enumerate(trained):
            places_of[matrix.shape].append(place)
        for shape, places in places_of.items():
            updates_NRC = torch.stack([updates[place] for place in places])
            updates_NRC = orthogonalised(updates_NRC, group["ns_coefficients"], group["ns_steps"])
            rate = group["lr"] * 0.2 * math.sqrt(max(shape))
            torch._foreach_add_([trained[place] for place in places], updates_NRC.unbind(), alpha=-rate)

    def _momentum(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]


def orthogonalised(
    matrices_NRC: Tensor, coefficients: tuple[float, float, float], num_iterations: int
) -> Tensor:
    """Matrices with singular values moved near one, by quintic Newton-Schulz iterations; [N, R, C]."""
    a, b, c = coefficients
    is_tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    wide = matrices_NRC.mT if is_tall else matrices_NRC
    wide = wide.to(torch.float32 if wide.device.type == "cpu" else torch.bfloat16)
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(num_iterations):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide.mT if is_tall else wide).to(matrices_NRC.dtype)
