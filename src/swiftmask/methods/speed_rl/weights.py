"""A tuned policy on disk: what it trained, and which base it belongs to; or merged, as a model of its own.

A folder holds the adapters (or the parameters that were trained) under the names they have in the model,
adapters without peft's name for them, as diffusers writes them. `merged` gives a plain model of the base's
kind, to be saved with its own `save_pretrained`.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from swiftmask.core.files import weights_like, write_folder
from swiftmask.core.protocol import BaseModel, MaskedGenerator, SamplingOptions
from swiftmask.core.ranges import check_fields
from swiftmask.core.reading import read_tensors, some
from swiftmask.core.settings import read_settings
from swiftmask.methods.speed_rl.policy import (
    TuningConfig,
    as_module,
    fold_adapters,
    make_policy,
    name_on_disk,
    trained_parameters,
)


def write_policy(
    folder: str | Path,
    policy: MaskedGenerator,
    *,
    tuning: TuningConfig,
    provenance: Mapping[str, object],
    base_name: str | None = None,
    steps: int | None = None,
    sampling: SamplingOptions | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `config.json`, `model.safetensors` and `provenance.json`, each whole or not at all.

    Args:
        base_name: what to call the base ("meissonic-scenes"); None is its family.
        steps: decode steps it was tuned for, the default when it is used.
        sampling: of the decodes it was tuned on, where they were not the base's; the default when it is used.
        dtype: of the weights on disk (they are read in the base's).
    """
    state = {name_on_disk(name): p.detach() for name, p in trained_parameters(policy).items()}
    settings = Settings(
        method="speed_rl",
        tuning=tuning,
        base_model=BaseModel.of(policy.spec, base_name),
        steps=steps,
        sampling=None if sampling == SamplingOptions() else sampling,
    )
    write_folder(folder, state, config=asdict(settings), provenance=provenance, dtype=dtype)


def read_policy(folder: str | Path, base: MaskedGenerator) -> MaskedGenerator:
    """The tuned policy in eval mode and without gradients; it shares the memory of `base`, which is frozen.

    Errors: FileNotFoundError; ValueError for a damaged folder or another base.
    """
    folder = Path(folder)
    expected = "expected the folder of a Speed-RL policy"
    settings = read_settings(Settings, folder / "config.json", expected=expected)
    if differ := settings.base_model.differences(base.spec):
        raise ValueError(
            f"{folder} was tuned from {settings.base_model.name}, and this is another model: "
            f"{some(differ)}; give the one it was tuned from"
        )
    state = read_tensors(folder / "model.safetensors")
    policy = make_policy(base, settings.tuning)
    own = {name_on_disk(name): p for name, p in trained_parameters(policy).items()}
    misfits = sorted(own.keys() ^ state.keys()) or [
        f"{name} {tuple(state[name].shape)} against {tuple(p.shape)}"
        for name, p in own.items()
        if state[name].shape != p.shape
    ]
    if misfits:
        raise ValueError(f"{folder} was tuned from another model than this {base.spec.name}: {some(misfits)}")
    with torch.no_grad():
        for name, parameter in own.items():
            place = f"{folder / 'model.safetensors'}: {name}"
            parameter.copy_(weights_like(parameter, state[name], source=place))
    as_module(policy).requires_grad_(False)
    return policy


def merged(policy: MaskedGenerator) -> MaskedGenerator:
    """A model of the base's own kind with adapters folded into its weights; shares no memory."""
    whole = copy.deepcopy(policy)
    fold_adapters(as_module(whole).requires_grad_(False))
    return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Config of a Speed-RL policy. None leaves it to the base model."""

    method: Literal["speed_rl"]
    tuning: TuningConfig
    base_model: BaseModel
    steps: int | None = None
    sampling: SamplingOptions | None = None

    def __post_init__(self) -> None:
        check_fields(self)
