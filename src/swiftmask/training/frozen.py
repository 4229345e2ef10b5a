"""What a trainer needs but does not train: kept out of its parameters, its copies and its checkpoints."""

from collections import OrderedDict
from typing import Any, Generic, Self, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


class Outside(Generic[T]):
    """Holds a module (a teacher, a reward) that is not part of its holder.

    `nn.Module` does not look inside, and a deep copy of the holder (average.py makes one) points to the same
    object instead of keeping a second one in memory.
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def keep_frozen_out_of_state(module: nn.Module) -> None:
    """Leave parameters that need no gradient out of the state dict of `module`, and do not ask for them
    when it is loaded: a trainer is built around a teacher that brings them.
    """
    module.register_state_dict_post_hook(_drop_frozen)
    module.register_load_state_dict_post_hook(_forgive_frozen)


def _frozen_names(module: nn.Module) -> set[str]:
    parameters = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in parameters if not parameter.requires_grad}


def _drop_frozen(
    module: nn.Module, state: OrderedDict[str, Tensor], prefix: str, metadata: dict[str, Any]
) -> None:
    for name in _frozen_names(module):
        del state[prefix + name]


def _forgive_frozen(module: nn.Module, incompatible: Any) -> None:
    frozen = _frozen_names(module)
    # The keys carry the prefix of whatever holds this module.
    incompatible.missing_keys[:] = [
        key for key in incompatible.missing_keys if not any(f".{key}".endswith(f".{name}") for name in frozen)
    ]
