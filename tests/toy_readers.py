"""Readers of columns that say the same of every image: what they name is known beforehand."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from swiftmask.core.files import write_folder
from swiftmask.rewards.reader_networks import ReaderNetwork, ReaderSettings


def write_blind_reader(folder: Path, columns: Mapping[str, Mapping[str, float]], name: str = "blind") -> Path:
    """Write a reader that gives these probabilities to the values of each column, whatever it sees."""
    settings = ReaderSettings(
        name=name,
        network="conv",
        width=16,
        num_features=8,
        resolution=16,
        columns={column: list(values) for column, values in columns.items()},
    )
    network = ReaderNetwork(settings)
    with torch.no_grad():
        network.head.weight.zero_()
        shares = [share for values in columns.values() for share in values.values()]
        network.head.bias.copy_(torch.tensor(shares).log())
    write_folder(folder, network.state_dict(), config=asdict(settings), provenance={}, dtype=torch.float32)
    return folder
