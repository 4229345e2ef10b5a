"""Low-rank adapters (arXiv 2106.09685) through peft, which is optional: all that is known of it is here."""

import re
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import nn

from swiftmask.core.settings import first_line

_NAME = "default"
"""What peft calls the adapters, inside the names of their parameters."""


def add_adapters(module: nn.Module, layers: Sequence[str], *, rank: int, alpha: int, seed: int) -> None:
    """Put adapters on the linear layers so named, and freeze everything else.

    Args:
        alpha: their scale in units of 1 / rank.
        seed: of the first factor; the second is zero, so that nothing changes yet.

    Errors: ValueError without peft.
    """
    library = _peft()
    # One pattern for these names alone: peft reads a list as endings, which other layers may share.
    pattern = "|".join(re.escape(name) for name in layers)
    config = library.LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        library.inject_adapter_in_model(config, module, adapter_name=_NAME)


def fold_adapters(module: nn.Module) -> None:
    """Add what the adapters do to the weights below them, in place, and take them away."""
    wrapped = [(name, layer) for name, layer in module.named_modules() if hasattr(layer, "base_layer")]
    for name, layer in wrapped:
        layer.merge(safe_merge=True)  # type: ignore[operator]
        module.set_submodule(name, layer.get_base_layer())  # type: ignore[operator]


def name_on_disk(name: str) -> str:
    """A parameter's name without peft's own part, as diffusers writes adapters."""
    return name.replace(f".{_NAME}.", ".")


def _peft() -> ModuleType:
    try:
        import peft
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"adapters need peft, which does not import here ({first_line(error)}): "
            "pip install 'swiftmask[rl]', or train whole parameters (tuning.method=full)"
        ) from error
    return peft
