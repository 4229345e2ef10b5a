"""A GPU to rehearse on where there is none: tensors that claim to be on it, and a record of all they do.

A `DeviceTensor` claims `torch.device("gpu:0")` and holds its values in a tensor of the CPU (or no values, on
the meta device, for models of real size). `Rehearsal` is the dispatch mode that sees every operation on them:
it launches kernels, copies from and to the host, and refuses what a GPU would refuse. Values are real, so
whatever depends on them (training, rewards, Speed-RL's rounds) runs, too.

The device is a PyTorch backend written in Python (the PrivateUse1 key). FakeTensorMode's tensors claim CUDA,
but autograd ends the process when it meets them in a PyTorch built without CUDA, and they have no values.
Without values, autocast casts what it casts on CUDA, where Python calls it by name; with values it casts
nothing, as a CPU computes slowly in bfloat16. Not rehearsed: streams, and what the allocator adds to the
memory that tensors need.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
import torch.fx.experimental._config
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import swiftmask

NAME = "gpu"
_PACKAGE = str(Path(swiftmask.__file__).parent)

_FREE = ("empty", "new_empty", "detach", "alias", "_unsafe_view", "_reshape_alias", "lift", "set_", "resize_")
"""Operations that launch nothing, beside views; the first by prefix."""

_READS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique",
    "_unique",
    "bincount",
    "equal",
    "repeat_interleave.Tensor",
)
"""Operations whose result, or its shape, the host waits for; by prefix."""

_ANYTHING = 1
"""What is read where there are no values: a truth, and finite."""

_COPIES = ("_to_copy", "copy_", "_copy_from")
_INDEXING = ("index.Tensor", "index_put", "_index_put_impl_", "_unsafe_index")
_ATTENTION = torch.nn.functional.scaled_dot_product_attention


class _Backend(_DummyBackendModule):
    """What PyTorch asks of a backend's module. The device is there while it is rehearsed on."""

    rehearsing = False

    def is_available(self) -> bool:
        return self.rehearsing

    def device_count(self) -> int:
        return 1

    def get_rng_state(self, device: object = None) -> Tensor:
        """The host's: what the device draws is drawn there."""
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_BACKEND = _Backend()
_setup_privateuseone_for_python_backend(NAME, backend_module=_BACKEND)
DEVICE = torch.device(NAME, 0)
_FALLTHROUGH = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_FALLTHROUGH.fallback(torch.library.fallthrough_kernel)


class DeviceTensor(Tensor):
    """Claims to be on the device; `values` are elsewhere."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> "DeviceTensor":
        with torch.inference_mode(False):  # views of tensors made before it are no inference tensors
            claimed = Tensor._make_wrapper_subclass(
                cls,
                values.size(),
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                layout=values.layout,
                device=DEVICE,
            )
        claimed.values = values
        return claimed

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.values.untyped_storage()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        raise RuntimeError(f"{func} on a device tensor, and no rehearsal is going on")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a GPU waits for its host for: a read, a copy to the device, or a scalar handed over.

    `where` is the line of the package that asked for it.
    """

    kind: str
    operation: str
    where: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.operation}) at {self.where}"


@dataclass(slots=True, eq=False)
class Part:
    """What happened in a part of a rehearsal."""

    kernels: Counter[str] = field(default_factory=Counter)
    events: list[Event] = field(default_factory=list)
    products: list[tuple[str, torch.dtype, str]] = field(default_factory=list)

    @property
    def num_kernels(self) -> int:
        return self.kernels.total()


_LOWERED = frozenset(
    "linear matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm einsum bilinear conv1d conv2d conv3d "
    "conv_transpose1d conv_transpose2d scaled_dot_product_attention".split()
)
_RAISED = frozenset(
    "layer_norm group_norm rms_norm softmax log_softmax cross_entropy nll_loss mse_loss l1_loss kl_div "
    "cosine_similarity normalize norm sum prod cumsum exp log pow __pow__ rsqrt reciprocal".split()
)
"""Functions whose arguments autocast casts to its own dtype, and to float32, by name."""


class _Functions(TorchFunctionMode):
    """What happens above the dispatcher: autocast, and fused attention, which is one kernel on a GPU,
    whatever it is made of here.
    """

    def __init__(self, rehearsal: "Rehearsal") -> None:
        super().__init__()
        self._rehearsal = rehearsal

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        casts = not self._rehearsal.has_values and torch.is_autocast_enabled(NAME)
        if casts and name in _LOWERED | _RAISED:
            dtype = torch.get_autocast_dtype(NAME) if name in _LOWERED else torch.float32
            args, kwargs = _map(lambda tensor: _cast(tensor, dtype), Tensor, (args, kwargs))
        if func is _ATTENTION:
            with self._rehearsal.fused("scaled_dot_product_attention", args[0]):
                return self._rehearsal.attention(*args, **kwargs)
        return func(*args, **kwargs)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    is_mine = isinstance(tensor, DeviceTensor) and tensor.is_floating_point()
    return tensor.to(dtype) if is_mine else tensor


class Rehearsal(TorchDispatchMode):
    """All operations on the device while it is entered.

    Args:
        values: whether tensors on the device have any; models of real size go without.
    """

    def __init__(self, *, values: bool = True) -> None:
        super().__init__()
        self.has_values = values
        self._behind = torch.device("cpu" if values else "meta")
        self._parts = [Part()]
        self._is_fused = False
        self._stack = ExitStack()

    @property
    def whole(self) -> Part:
        return self._parts[0]

    @contextmanager
    def part(self) -> Iterator[Part]:
        """Records what happens inside."""
        part = Part()
        self._parts.append(part)
        try:
            yield part
        finally:
            self._parts.remove(part)

    @contextmanager
    def fused(self, name: str, first: Tensor) -> Iterator[None]:
        """What happens inside is one kernel."""
        if isinstance(first, DeviceTensor):
            self._launch(name, [first])
        before, self._is_fused = self._is_fused, True
        try:
            yield
        finally:
            self._is_fused = before

    def attention(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Without values: the fused kernel, which keeps no weights [queries, keys] for the backward pass."""
        is_plain = not args and kwargs.get("attn_mask") is None
        if self._behind.type != "meta" or not isinstance(query, DeviceTensor) or not is_plain:
            return _ATTENTION(query, key, value, *args, **kwargs)
        fused = torch.ops.aten._scaled_dot_product_flash_attention
        causal, dropout = kwargs.get("is_causal", False), kwargs.get("dropout_p", 0.0)
        return fused(query, key, value, dropout, causal, scale=kwargs.get("scale"))[0]

    def __enter__(self) -> Self:
        _BACKEND.rehearsing = True
        # torch.tensor(..., device=...) then makes its tensor on the host, and copies it where this sees it.
        self._stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        if self._behind.type == "meta":  # a mask without values is true everywhere
            patched = torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True)
            self._stack.enter_context(patched)
        # Modules that change their dtype then get new parameters: `.data = ` would leave the values behind.
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        self._stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._stack.enter_context(_Functions(self))
        return super().__enter__()

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        self._stack.close()
        _BACKEND.rehearsing = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper that keeps dynamo away takes longer than most operations

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket is torch.ops.aten.to:  # in inference mode it arrives whole
            return self._moved(func, args, kwargs)
        tensors = [leaf for leaf in _leaves((*args, *kwargs.values())) if isinstance(leaf, Tensor)]
        mine = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        wanted = kwargs.get("device")
        on_device = bool(mine) if wanted is None else torch.device(wanted).type == NAME
        if not on_device and not mine:
            return func(*args, **kwargs)
        operation = _operation(func)
        if operation.is_composite:  # in inference mode these arrive whole
            with self._again():
                return func.decompose(*args, **kwargs)
        if operation.is_copy:
            return self._copied(func, operation.name, args, kwargs, on_device=on_device)
        self._check(operation, tensors, kwargs)
        self._record(operation, args, mine)
        result = self._computed(func, args, kwargs)
        if not on_device:
            return result
        claimed = _map(DeviceTensor, Tensor, result)
        return claimed if wanted is not None else self._aliased(operation, func, args, kwargs, claimed)

    def _aliased(self, operation: "_Operation", func: Any, args: tuple, kwargs: dict, claimed: Any) -> Any:
        """The result as autograd must see it: what was written to, or a view of its base."""
        if not torch.is_inference_mode_enabled():
            return return_and_correct_aliasing(func, args, kwargs, claimed) if operation.is_alias else claimed
        return args[0] if operation.writes_first else claimed

    def _moved(self, func: Any, args: tuple, kwargs: dict) -> Any:
        given = dict(zip([argument.name for argument in func._schema.arguments], args, strict=False)) | kwargs
        source, wanted = args[0], given.get("other", args[0])
        device = torch.device(given.get("device") or wanted.device)
        dtype = given.get("dtype") or wanted.dtype
        if (device.type, dtype) == (source.device.type, source.dtype):
            return source
        return self.__torch_dispatch__(
            torch.ops.aten._to_copy.default, (), (source,), {"device": device, "dtype": dtype}
        )

    @contextmanager
    def _again(self) -> Iterator[None]:
        """The mode goes on inside, where a mode is off while it handles an operation."""
        super().__enter__()
        try:
            yield
        finally:
            super().__exit__(None, None, None)

    def _computed(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and self._behind.type == "meta":
            return _ANYTHING
        if func is torch.ops.aten._unique2.default and self._behind.type == "meta":  # all are alike
            values = args[0].values
            one = torch.empty(1, dtype=torch.int64, device="meta")
            return values.new_empty(1), torch.empty_like(values, dtype=torch.int64), one
        args, kwargs = _map(self._values, Tensor, (args, kwargs))
        if kwargs.get("device") is not None:
            kwargs["device"] = self._behind
        return func(*args, **kwargs)

    def _values(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, DeviceTensor):
            return tensor.values
        return tensor if tensor.device == self._behind else tensor.to(self._behind)

    def _copied(self, func: Any, name: str, args: tuple, kwargs: dict, *, on_device: bool) -> Any:
        """Between host and device, or on the device."""
        source = args[1] if name.startswith("copy_") else args[0]
        target_is_mine = isinstance(args[0], DeviceTensor) if name.startswith("copy_") else on_device
        if isinstance(source, DeviceTensor) and target_is_mine:
            self._launch(name, [source])
        elif target_is_mine:
            self._happened("copy to the device", name)
        else:
            self._happened("read", name)
        if not target_is_mine:
            values = source.values
            given = torch.full(values.shape, _ANYTHING, dtype=values.dtype) if values.is_meta else values
            new_args = tuple(given if arg is source else arg for arg in args)
            return func(*new_args, **kwargs)
        result = self._computed(func, args, kwargs)
        return args[0] if name.startswith("copy_") else _map(DeviceTensor, Tensor, result)

    def _check(self, operation: "_Operation", tensors: list[Tensor], kwargs: dict) -> None:
        """Errors: RuntimeError for what a GPU refuses."""
        name = operation.name
        generator = kwargs.get("generator")
        if isinstance(generator, torch.Generator) and generator.device.type != NAME:
            raise RuntimeError(f"{name}: expected a generator of {DEVICE}, got one of {generator.device}")
        others = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
        if not others or kwargs.get("device") is not None:  # made like a tensor of another device
            return
        is_index = operation.is_indexing and isinstance(tensors[0], DeviceTensor)
        if all(tensor.ndim == 0 for tensor in others) and not is_index:
            self._happened("scalar from the host", name)
        elif is_index:
            self._happened("copy to the device", name)
        else:
            raise RuntimeError(
                f"{name} at {_asking()}: expected all tensors on one device, found {DEVICE} and "
                f"{', '.join(sorted({str(tensor.device) for tensor in others}))}"
            )

    def _record(self, operation: "_Operation", args: tuple, mine: list[DeviceTensor]) -> None:
        if operation.is_read:
            self._happened("read", operation.name)
        elif operation.is_indexing and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            self._happened("read", f"{operation.name} by a mask")
        if not operation.is_free:
            self._launch(operation.name, mine)

    def _launch(self, name: str, tensors: list[DeviceTensor]) -> None:
        if self._is_fused:
            return
        is_product = name.startswith(("mm.", "addmm.", "bmm.", "baddbmm.", "convolution", "scaled_dot"))
        for part in self._parts:
            part.kernels[name] += 1
            if is_product:
                part.products.append((name, tensors[0].dtype, _asking()))

    def _happened(self, kind: str, name: str) -> None:
        event = Event(kind, name, _asking())
        for part in self._parts:
            part.events.append(event)


@dataclass(frozen=True, slots=True)
class _Operation:
    """What an operation is, by its name and schema."""

    name: str
    is_copy: bool
    is_read: bool
    is_indexing: bool
    is_free: bool
    is_alias: bool
    is_composite: bool
    writes_first: bool


@cache
def _operation(func: Any) -> _Operation:
    name = str(func).removeprefix("aten.")
    return _Operation(
        name,
        is_copy=name.startswith(_COPIES),
        is_read=name.startswith(_READS),
        is_indexing=name.startswith(_INDEXING),
        is_free=func.is_view or name.startswith((*_FREE, "_local_scalar_dense")),
        is_composite=torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"),
        writes_first=func._schema.is_mutable and len(func._schema.returns) == 1,
        is_alias=any(value.alias_info is not None for value in func._schema.returns),
    )


def _leaves(nest: Any) -> Iterator[Any]:
    for value in nest:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def _map(function: Callable[[Any], Any], kind: type, nest: Any) -> Any:
    """`nest` (tuples, lists and dicts) with `function` of everything of a kind."""
    if isinstance(nest, kind):
        return function(nest)
    if isinstance(nest, dict):
        return {key: _map(function, kind, value) for key, value in nest.items()}
    if isinstance(nest, list | tuple):
        mapped = [_map(function, kind, value) for value in nest]
        return mapped if isinstance(nest, list) else tuple(mapped)
    return nest


def _asking() -> str:
    """The innermost line of the package on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            return f"{frame.f_code.co_filename.removeprefix(_PACKAGE + os.sep)}:{frame.f_lineno}"
        frame = frame.f_back
    return "a test"


@contextmanager
def found_by_accelerate() -> Iterator[None]:
    """accelerate finds the device inside, and trains on it."""
    PartialState(cpu=True)
    states = [state._shared_state for state in (PartialState, AcceleratorState) if state._shared_state]
    before = [state["device"] for state in states]
    for state in states:
        state["device"] = DEVICE
    try:
        yield
    finally:
        for state, device in zip(states, before, strict=True):
            state["device"] = device
