"""A short training in one process of several: `python one_of_several.py FOLDER KIND`.

Started by test_several.py, with the environment that torchrun would give.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swiftmask.training.loop import NonFiniteError, train
from swiftmask.training.setup import TrainingConfig

CONFIG = TrainingConfig(
    num_steps=6,
    batch_size=16,
    learning_rate=0.05,
    warmup_steps=2,
    precision="no",
    save_every=3,
    log_every=2,
)
CHANGES: dict[str, dict[str, Any]] = {
    "whole": {},
    "accumulated": {"accumulate": 2},
    "sharded": {"sharded": True, "accumulate": 2},
    "nan": {},
}


class Toy(nn.Module):
    """A frozen layer, two that take turns, and metrics that not every process gives."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 8).requires_grad_(False)
        self.turns = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, batch: tuple[int, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        turn, x_BD = batch
        loss = (self.turns[turn](self.frozen(x_BD)) - 1).square().mean()
        return loss, {"mean": x_BD.mean()} | ({"large": x_BD.max()} if x_BD.max() > 1.5 else {})


def batches(step: int, rank: int, num_ranks: int) -> tuple[int, Tensor]:
    """Shares of one batch of 16."""
    x_BD = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
    return step % 2, x_BD[rank::num_ranks]


def main(folder: Path, kind: str) -> None:
    torch.manual_seed(0)

    def train_step(model, batch):
        return model(batch)

    def with_a_nan(step: int, rank: int, num_ranks: int) -> tuple[int, Tensor]:
        turn, x_BD = batches(step, rank, num_ranks)
        return turn, x_BD * (float("nan") if (step, rank) == (1, 1) else 1.0)

    def look(step: int, model: nn.Module) -> None:
        assert isinstance(model, Toy)
        model(batches(0, 0, 1))  # with whole weights, in one process alone

    data = with_a_nan if kind == "nan" else batches
    config = replace(CONFIG, **CHANGES[kind])
    try:
        trained = train(Toy(), data, train_step, config, folder, name="toy", on_save=look)
    except NonFiniteError as error:
        with (folder / "stopped.txt").open("a") as file:
            file.write(f"{error}\n")
        return
    weights = {name: p.tolist() for name, p in trained.named_parameters()}
    if not (folder / "weights.json").exists():
        (folder / "weights.json").write_text(json.dumps(weights))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
