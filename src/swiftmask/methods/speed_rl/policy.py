"""The policy: a copy of the base model that owns only what is trained.

Low-rank adapters (arXiv 2106.09685, through peft, which is optional) or whole parameters; everything else is
the base's memory, frozen. The base itself is therefore the reference of the KL term: for adapters it is the
policy with them off, for whole parameters the frozen copy, and neither costs memory of its own.
"""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from swiftmask.core.compiled import Repeating
from swiftmask.core.optional import library
from swiftmask.core.protocol import MaskedGenerator, ScoringModel, Spec
from swiftmask.core.ranges import check_fields
from swiftmask.core.reading import some


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningConfig:
    r"""What is trained.

    Attributes:
        targets: regular expression over whole names: of linear layers that get adapters
            (`transformer\..*\.(to_q|to_k|to_v)`), or of parameters trained as they are (`transformer\..*`).
            Empty is all of the blocks that repeat.
        method: a name in `TUNINGS`.
        lora_r, lora_alpha: rank of the adapters, and their scale in units of 1 / rank.
        seed: of the adapters' first factor (the second starts at zero, so the policy starts as the base).
    """

    targets: str = ""
    method: str = "lora"
    lora_r: int = 64
    lora_alpha: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.method not in TUNINGS:
            raise ValueError(f"tuning.method must be one of {', '.join(TUNINGS)}, got {self.method!r}")


def make_policy(base: MaskedGenerator, tuning: TuningConfig) -> ScoringModel:
    """A policy that starts as `base`, in eval mode; `base` is frozen.

    Errors: ValueError for a base that cannot score tokens, or targets that name nothing in it.
    """
    require_log_prob(base.spec)
    policy = TUNINGS[tuning.method](base, tuning)
    as_module(policy).eval()
    assert isinstance(policy, ScoringModel)
    return policy


def require_log_prob(spec: Spec) -> None:
    """Errors: ValueError for a model that cannot score its tokens."""
    if not spec.has_log_prob:
        raise ValueError(
            f"{spec.name} has no log_prob; speed_rl needs one: use maskgit, meissonic or lumina_dimoo"
        )


def trained_parameters(policy: MaskedGenerator) -> dict[str, nn.Parameter]:
    """The parameters that are the policy's own, by name."""
    return {name: p for name, p in as_module(policy).named_parameters() if p.requires_grad}


def as_module(model: MaskedGenerator) -> nn.Module:
    assert isinstance(model, nn.Module)
    return model


def _with_adapters(base: MaskedGenerator, tuning: TuningConfig) -> MaskedGenerator:
    """Errors: ValueError if no linear layer is targeted, or without peft."""
    linear = [name for name, layer in as_module(base).named_modules() if isinstance(layer, nn.Linear)]
    chosen = _targeted(base, linear, tuning.targets, "linear layers")
    policy = _sharing_all_but(base, frozenset())
    module = as_module(policy)
    add_adapters(module, chosen, rank=tuning.lora_r, alpha=tuning.lora_alpha, seed=tuning.seed)
    return policy


def _with_own_parameters(base: MaskedGenerator, tuning: TuningConfig) -> MaskedGenerator:
    """Errors: ValueError if no parameter is targeted."""
    names = [name for name, _ in as_module(base).named_parameters()]
    own = frozenset(_targeted(base, names, tuning.targets, "parameters"))
    policy = _sharing_all_but(base, own)
    for name, parameter in as_module(policy).named_parameters():
        parameter.requires_grad_(name in own)
    return policy


Tuning = Callable[[MaskedGenerator, TuningConfig], MaskedGenerator]

TUNINGS: dict[str, Tuning] = {"lora": _with_adapters, "full": _with_own_parameters}


def _sharing_all_but(base: MaskedGenerator, own: frozenset[str]) -> MaskedGenerator:
    """A copy whose parameters are the base's memory but for those named; freezes the base."""
    module = as_module(base).requires_grad_(False)
    shared: list[Tensor] = [p for name, p in module.named_parameters() if name not in own]
    return copy.deepcopy(base, {id(tensor): tensor for tensor in (*shared, *module.buffers())})


def _targeted(base: MaskedGenerator, names: list[str], pattern: str, what: str) -> list[str]:
    if pattern:
        chosen = [name for name in names if re.fullmatch(pattern, name)]
    else:
        blocks = base.repeated_blocks().per_step if isinstance(base, Repeating) else ()
        inside = tuple(f"{name}." for name, module in as_module(base).named_modules() if module in blocks)
        chosen = [name for name in names if name.startswith(inside)]
    if not chosen:
        raise ValueError(
            f"tuning.targets {pattern!r} matches none of the {what} of {base.spec.name}: {some(names)}"
        )
    return chosen


_ADAPTERS = "default"
"""What peft calls the adapters, inside the names of their parameters."""


def add_adapters(module: nn.Module, layers: Sequence[str], *, rank: int, alpha: int, seed: int) -> None:
    """Put adapters on the linear layers so named, and freeze everything else.

    Args:
        alpha: their scale in units of 1 / rank.
        seed: of the first factor; the second is zero, so that nothing changes yet.

    Errors: ValueError without peft.
    """
    peft = library("peft", "tuning.method=lora (unlike full)")
    # One pattern for these names alone: peft reads a list as endings, which other layers may share.
    pattern = "|".join(re.escape(name) for name in layers)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, module, adapter_name=_ADAPTERS)


def fold_adapters(module: nn.Module) -> None:
    """Add what the adapters do to the weights below them, in place, and take them away."""
    wrapped = [(name, layer) for name, layer in module.named_modules() if hasattr(layer, "base_layer")]
    for name, layer in wrapped:
        layer.merge(safe_merge=True)  # type: ignore[operator]
        module.set_submodule(name, layer.get_base_layer())  # type: ignore[operator]


def name_on_disk(name: str) -> str:
    """A parameter's name without peft's own part, as diffusers writes adapters."""
    return name.replace(f".{_ADAPTERS}.", ".")
