"""Training checkpoints: one safetensors file, replaced atomically, that resumes bit for bit (on a CPU).

Holds model, averaged model, optimizer state, the step, and the metrics that no line of the log has yet.
There is no data-loader or random state to save: a batch and its randomness are a function of the step number
(loop.py). The checkpoint before stays beside it, and is used if the last one cannot be read.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from swiftmask.core.sealed import read_sealed, sealed
from swiftmask.core.settings import first_line
from swiftmask.core.writing import written_whole
from swiftmask.training.metrics import Totals
from swiftmask.training.sharding import split_like, whole


@dataclass(frozen=True, slots=True)
class Reached:
    """Where a run stands: finished steps, and the metrics since the last line of the log."""

    step: int
    totals: Totals


def save_checkpoint(
    path: Path,
    modules: dict[str, nn.Module],
    optimizers: Sequence[Optimizer],
    reached: Reached,
    fingerprint: str,
    *,
    writes: bool = True,
) -> None:
    """Write everything needed to continue. Tensors are copied to the host one by one.

    Args:
        modules: named modules whose whole state dicts are kept.
        fingerprint: text that must be equal on resume: what the result depends on.
        writes: False in all processes but one, which take part where tensors are split.
    """
    tensors = {}
    for key, value in _state(modules, optimizers):
        complete = whole(value.detach())
        if writes:
            tensors[key] = complete.to("cpu", copy=True).contiguous()
    if not writes:
        return
    metadata = {
        "step": json.dumps(reached.step),
        "totals": json.dumps(reached.totals),
        "fingerprint": fingerprint,
    }
    with written_whole(path) as partial:
        save_file(tensors, partial, metadata=sealed(tensors, metadata))
        if path.exists():
            os.replace(path, previous(path))


def previous(path: Path) -> Path:
    """Where the checkpoint before the last one is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def load_checkpoint(
    path: Path,
    modules: dict[str, nn.Module],
    optimizers: Sequence[Optimizer],
    fingerprint: str,
    *,
    num_steps: int,
) -> Reached | None:
    """Restore in place; None if there is no checkpoint.

    Args:
        num_steps: of the whole run, which no checkpoint lies beyond.

    Errors: ValueError if it was written by another recipe or with other settings, or if neither it nor the
    one before can be read.
    """
    there = [each for each in (path, previous(path)) if each.exists()]
    damages = []
    for each in there:
        try:
            tensors, metadata = read_sealed(each)
        except ValueError as error:
            damages.append(str(error))
            continue
        if (found := metadata.get("fingerprint", "")) != fingerprint:
            raise ValueError(
                f"{each} was written with other settings ({found}) than this run ({fingerprint}): "
                "use the same settings, or another output folder"
            )
        reached = _reached(each, metadata)
        if not 0 <= reached.step <= num_steps:
            raise ValueError(f"{each} is of step {reached.step}: expected 0 to {num_steps}; delete it")
        _restore(each, tensors, modules, optimizers)
        if damages:
            warnings.warn(f"{damages[0]}: continuing from {each.name}", stacklevel=2)
        return reached
    if damages:
        raise ValueError(f"{'; '.join(damages)}: delete it to train from the start, or take another folder")
    return None


def _reached(path: Path, metadata: Mapping[str, str]) -> Reached:
    try:
        totals = json.loads(metadata["totals"]).items()  # as we wrote it, NaN included: the file is sealed
        return Reached(int(metadata["step"]), {key: (float(total), int(n)) for key, (total, n) in totals})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no checkpoint of a training ({first_line(error)}): delete it") from error


def _state(modules: dict[str, nn.Module], optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, Tensor]]:
    for name, module in modules.items():
        for key, value in module.state_dict().items():
            yield f"{name}/{key}", value
    for number, optimizer in enumerate(optimizers):
        for index, parameter in enumerate(_parameters(optimizer)):
            for key, value in optimizer.state.get(parameter, {}).items():
                yield f"optimizer.{number}/{index}.{key}", torch.as_tensor(value)


def _restore(
    path: Path, tensors: dict[str, Tensor], modules: dict[str, nn.Module], optimizers: Sequence[Optimizer]
) -> None:
    """Everything is checked before anything is changed.

    Errors: ValueError for tensors of other names or shapes.
    """
    states = {}
    for name, module in modules.items():
        found, current = _below(tensors, f"{name}/"), module.state_dict()
        differ = [k for k in found.keys() | current if k not in found or k not in current
                  or found[k].shape != current[k].shape]  # fmt: skip
        if differ:
            raise ValueError(
                f"{path} does not fit: {len(differ)} tensors of the {name} differ, first {min(differ)}; "
                "take another folder, or delete it to train from the start"
            )
        states[name] = {key: split_like(value, current[key]) for key, value in found.items()}
    for name, module in modules.items():
        module.load_state_dict(states[name])
    for number, optimizer in enumerate(optimizers):
        _restore_optimizer(optimizer, _below(tensors, f"optimizer.{number}/"))


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _restore_optimizer(optimizer: Optimizer, flat: dict[str, Tensor]) -> None:
    parameters = _parameters(optimizer)
    for name, value in flat.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        optimizer.state[parameter][key] = value if key == "step" else split_like(value, parameter)
