"""Floating-point operations of what runs on the meta device, by the formulas of `torch.utils.flop_counter`.

Meta kernels are Python, 0.7 ms each, and a decode repeats the same ones over and over: every block of a
network, every step of a denoising chain. What an operation returns on that device depends on the shapes and
numbers it is given alone, so each is run once in a process and remembered. `FlopCounterMode` counts the same
and runs all: it took 26 s for four steps of mar-scenes, this 3 s.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import flop_registry

_Key = tuple[Any, ...]

_KNOWN: dict[_Key, tuple[Callable[[], Any], int]] = {}
"""What makes the results of an operation again, and how many floating-point operations it is."""

_MOST_KNOWN = 2**16


class CountedOperations(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        total: operations so far; a multiplication and an addition are two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        key = _key(func, args, kwargs)
        if key in _KNOWN:
            again, flops = _KNOWN[key]
            self.total += flops
            return again()
        before = self.total
        out = self._run(func, args, kwargs)
        if key is not None and (again := _maker(out)) is not None:
            if len(_KNOWN) >= _MOST_KNOWN:
                _KNOWN.clear()
            _KNOWN[key] = again, self.total - before
        return out

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What has no formula may consist of operations that have one."""
        if func._overloadpacket not in flop_registry:
            with self:
                out = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        out = func(*args, **kwargs)
        self.total += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        return out


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Key | None:
    """What the result depends on; None for what writes, or reads from another device."""
    if func._schema.is_mutable:
        return None
    # By which number values are multiplied does not matter, and the guidance of each step is another one.
    by_type = (float,) if torch.Tag.pointwise in func.tags else ()
    described: list[object] = [func]
    on_meta = [_describe(value, described, by_type) for value in (*args, *kwargs, *kwargs.values())]
    return tuple(described) if any(on_meta) and None not in on_meta else None


def _describe(value: object, described: list[object], by_type: tuple[type, ...]) -> bool | None:
    """Append what identifies a value; returns whether a meta tensor is in it, None for what has no key."""
    if isinstance(value, Tensor):
        described += (value.shape, value.stride(), value.dtype)
        return True if value.is_meta else None
    if isinstance(value, list | tuple):
        described += (type(value), len(value))
        found = [_describe(each, described, by_type) for each in value]
        return None if None in found else any(found)
    described += (type(value), None if isinstance(value, by_type) else value)
    return False if type(value).__hash__ is not None else None


def _maker(out: Any) -> Callable[[], Any] | None:
    """Makes equal results, of meta tensors alone; None for others."""
    leaves, structure = tree_flatten(out)
    if not all(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves):
        return None
    described = [(leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves]

    def again() -> Any:
        made = [
            torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            for shape, stride, dtype in described
        ]
        return tree_unflatten(made, structure)

    return again
