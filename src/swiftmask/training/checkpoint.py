"""Training checkpoints: one safetensors file, replaced atomically, that resumes bit for bit (on a CPU).

Holds model, averaged model, optimizer state and the step. There is no data-loader or random state to save:
a batch and its randomness are a function of the step number (loop.py).
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer


def save_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizers: Sequence[Optimizer], step: int, fingerprint: str
) -> None:
    """Write everything needed to continue after `step` finished steps.

    Args:
        modules: named modules whose whole state dicts are kept.
        fingerprint: text that must be equal on resume (recipe and its settings).
    """
    tensors = {
        f"{name}/{key}": value.contiguous()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for index, optimizer in enumerate(optimizers):
        tensors |= {f"optimizer.{index}/{key}": value for key, value in _flat_state(optimizer).items()}
    cloned = {key: value.detach().clone() for key, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(cloned, partial, metadata={"step": json.dumps(step), "fingerprint": fingerprint})
    os.replace(partial, path)


def load_checkpoint(
    path: Path, modules: dict[str, nn.Module], optimizers: Sequence[Optimizer], fingerprint: str
) -> int:
    """Restore in place and return the number of finished steps.

    Errors: ValueError if the file was written by another recipe or with other settings.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if metadata["fingerprint"] != fingerprint:
            raise ValueError(
                f"{path} was written with other settings ({metadata['fingerprint']}) than this run "
                f"({fingerprint}): use the same settings, or another output folder"
            )
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    for name, module in modules.items():
        module.load_state_dict(_below(tensors, f"{name}/"))
    for index, optimizer in enumerate(optimizers):
        _restore_state(optimizer, _below(tensors, f"optimizer.{index}/"))
    return json.loads(metadata["step"])


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _flat_state(optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{key}": torch.as_tensor(value)
        for index, parameter in enumerate(_parameters(optimizer))
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_state(optimizer: Optimizer, flat: dict[str, Tensor]) -> None:
    parameters = _parameters(optimizer)
    for name, value in flat.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
