"""The range of every number: one table for options, arguments, presets, `config.json` and recipes.

A name has one range wherever it is a field. Where it means two things, the class comes before it
("Generate.seeds"). `check_fields` checks the types and numbers of a dataclass; what depends on two fields, or
on a model, is checked beside it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Finite numbers from `low` to `high`.

    Attributes:
        above: whether `low` itself is outside.
        below: whether `high` itself is outside.
        hint: ends the message about a number that is outside.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    hint: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number lies inside. NaN and infinities do not."""
        if not self.low <= value <= self.high:
            return False
        return not (self.above and value == self.low) and not (self.below and value == self.high)

    def __str__(self) -> str:
        if not self.above and not self.below:
            return f"between {_shown(self.low)} and {_shown(self.high)}"
        low = f"above {_shown(self.low)}" if self.above else f"of at least {_shown(self.low)}"
        high = f"below {_shown(self.high)}" if self.below else f"at most {_shown(self.high)}"
        return f"{low} and {high}"


SEED = Range(low=0, high=2**64 - 1)
"""Philox's key has two 32-bit words (rng.py)."""

GUIDANCE = Range(
    low=1,
    high=100,
    hint="1 is off; a scale that is off at 0 (valeoai's w, Lumina-DiMOO's cfg) is guidance - 1",
)
"""Below 1 the null branch would get a part of the image, which no upstream sampler asks for: such a number is
a scale that is off at 0.
"""

CODE_TEMPERATURE = Range(low=1e-3, high=100, hint="logits of codes are divided by it")
"""Continuous tokens multiply their noise by a temperature, which may then be 0."""

_COUNT = Range(low=1, high=10**9)
_COUNT_FROM_0 = Range(low=0, high=10**9)
_SIZE = Range(low=1, high=2**20)
_MODULES = Range(low=1, high=1024)
_ID = Range(low=0, high=2**20)
_STEPS = Range(low=1, high=2**16)
_BATCH = Range(low=1, high=2**20)
_PIXELS = Range(low=1, high=2**14)
_WEIGHT = Range(low=0, high=1e6)
_POSITIVE = Range(low=0, high=1e6, above=True)
_DECAY = Range(low=0, high=1, below=True)
_TEMPERATURE = Range(low=0, high=100)


def _same(allowed: Range, names: str) -> dict[str, Range]:
    """One range for several names."""
    return dict.fromkeys(names.split(), allowed)


RANGES: dict[str, Range] = {
    # how a model samples
    "guidance": GUIDANCE,
    **_same(_TEMPERATURE, "temperature temperatures choice_temperature"),
    **_same(Range(low=0.1, high=10), "schedule_power schedule_powers"),
    "denoising_steps": Range(low=1, high=1000),
    "noisiest_timestep": Range(low=1, high=999),
    **_same(_STEPS, "steps marval_steps speed_rl_steps reference_steps"),
    "full_steps": Range(low=1, high=2**16, hint="step 0 is always full"),
    "Settings.full_steps": Range(low=0, high=2**16),  # how many of them, or which
    "Saved.full_steps": Range(low=0, high=2**16),
    **_same(SEED, "seed Generate.seeds"),
    "size": _PIXELS,
    "DataEmoji.size": Range(low=16, high=1024),
    # commands
    "num": Range(low=1, high=10**6),
    **_same(_BATCH, "batch batch_size search_images drift_images"),
    "blocks_on_device": Range(low=0, high=1024),
    **_same(_SIZE, "codebook_size classes"),
    **_same(Range(low=1, high=1024), "num_heads layers threads"),
    **_same(_PIXELS, "resolution crop"),
    "images": Range(low=2, high=10**9),
    "seeds": Range(low=1, high=10**4),
    **_same(Range(low=1, high=1000), "shown nearest splits"),
    "repeats": Range(low=1, high=10**5),
    "matmul_sizes": Range(low=1, high=2**15),
    "port": Range(low=0, high=65535),
    **_same(Range(low=1, high=2**16), "max_images max_megabytes"),
    "speedup": Range(low=0, high=10**4, above=True),
    "gflop": Range(low=0, high=1e12, above=True),
    "Serve.max_steps": _STEPS,
    "max_batch": Range(low=1, high=4096),
    **_same(Range(low=1, high=4096), "workers replicas min_replicas"),
    **_same(Range(low=0, high=64), "gpus_per_worker gpus_per_replica"),
    "max_wait_ms": Range(low=0, high=60_000),
    "max_queue": Range(low=1, high=10**6),
    "max_prompt": Range(low=1, high=10**6),
    "max_connections": Range(low=1, high=10**5),
    "max_loss": Range(low=0, high=1, below=True, hint="it is a share: 0.01 is 1 %"),
    # training
    **_same(_COUNT, "num_steps save_every log_every"),
    "accumulate": _BATCH,
    **_same(Range(low=0, high=10, above=True), "learning_rate muon_learning_rate"),
    **_same(_DECAY, "betas ema_decay dropout"),
    "weight_decay": Range(low=0, high=10),
    "warmup_steps": _COUNT_FROM_0,
    "max_grad_norm": _POSITIVE,
    # recipes
    "held_out": Range(low=0, high=1, below=True),
    **_same(_COUNT, "num_images num_pictures num_captions shard_size"),
    "SampleConfig.number": Range(low=0, high=1000),
    "downscale": Range(low=1, high=32),
    **_same(_SIZE, "kept_codes discriminator_width num_codes"),
    **_same(_WEIGHT, "edges perceptual adversarial guess_weight divergence_weight"),
    **_same(_COUNT_FROM_0, "adversarial_after max_unreadable every"),
    "num_copies": Range(low=1, high=64),
    "num_noisy_copies": Range(low=0, high=64),
    "max_steps": _STEPS,
    "num_prompts": Range(low=1, high=1000),
    **_same(Range(low=0, high=100), "simple_percent single_percent"),
    **_same(Range(low=1, high=2**16), "width num_features"),
    "num_views": _COUNT,
    **_same(Range(low=0, high=1), "codec_share broken_share shift"),
    "zoom": Range(low=1, high=4),
    "turn": Range(low=0, high=180),
    "blur": Range(low=0, high=1, above=True),
    "noise": Range(low=0, high=10),
    # networks, read from config.json
    **_same(_MODULES, "depth encoder_depth decoder_depth head_depth num_double_blocks num_single_blocks"),
    **_same(_MODULES, "num_res_blocks layers_per_block num_hidden_layers encoder_heads decoder_heads"),
    **_same(_MODULES, "num_attention_heads num_groups norm_num_groups grid text_depth text_heads"),
    **_same(Range(low=1, high=64), "ch_mult patch_size"),
    **_same(_SIZE, "ch z_channels n_embed embed_dim block_out_channels latent_channels num_vq_embeddings"),
    **_same(_SIZE, "vq_embed_dim encoder_width decoder_width head_width text_width channels num_classes"),
    **_same(_SIZE, "buffer_size vocabulary_size vocab_size hidden_size intermediate_size projection_dim"),
    "class_attributes": _SIZE,
    **_same(Range(low=3, high=3), "in_channels out_ch"),
    **_same(_PIXELS, "attn_resolutions decoder_attn_resolutions image_size"),
    "scale": Range(low=1e-6, high=1e6),
    "mlp_ratio": Range(low=0, high=64, above=True),
    "rotary_axes": Range(low=2, high=1024),
    "max_position_embeddings": Range(low=2, high=2**16),
    "layer_norm_eps": Range(low=0, high=1, below=True),
    **_same(_ID, "eos_token_id mask newline image_start image_end answer_start answer_end first_code"),
    "num_own": Range(low=1, high=10**6),
    "base_marks": Range(low=0, high=1e30),
    # MIGM-Shortcut
    "bottleneck_width": Range(low=1, high=2**16),
    "mlp_width": Range(low=1, high=2**20),
    "num_blocks": Range(low=1, high=1024),
    **_same(Range(low=2, high=2**16), "time_frequencies step_counts"),
    "rope_theta": Range(low=1, high=1e9),
    "norm_eps": Range(low=0, high=1, below=True),
    **_same(_BATCH, "images_per_round updates_per_round images_per_update"),
    "max_rollout": Range(low=1, high=1000),
    "token_weight": _WEIGHT,
    # MARVAL
    "timestep": Range(low=0, high=999),
    **_same(Range(low=0, high=10**4), "first_timestep last_timestep"),
    "second_weight": _WEIGHT,
    "radius": _POSITIVE,
    **_same(Range(low=1, high=1000), "noisings_per_token auxiliary_updates"),
    "grad_iterations": _STEPS,
    "MaskLaw.mean": Range(low=-1, high=2),
    "MaskLaw.std": Range(low=0, high=10, above=True),
    **_same(Range(low=0, high=1), "lowest highest"),
    # Speed-RL
    "num_generations": Range(low=2, high=2**16, hint="a group compares its images"),
    **_same(_BATCH, "generation_batch_size steps_per_generation images_per_forward judged"),
    "num_iterations": Range(low=1, high=1000),
    "epsilon": _DECAY,
    "epsilon_high": Range(low=0, high=1000),
    **_same(_WEIGHT, "beta speed_weight"),
    "adv_clip_max": _POSITIVE,
    "SpeedRLConfig.step_counts": _STEPS,
    "percentile": Range(low=0, high=100, below=True),
    "window": _SIZE,
    "active_after": Range(low=0, high=2**20),
    **_same(Range(low=1, high=2**16), "lora_r lora_alpha"),
    # reward servers
    "timeout_s": Range(low=0, high=86_400, above=True),
    "num_attempts": Range(low=1, high=1000),
    "first_wait_s": Range(low=0, high=3600),
}


def range_of(owner: type, name: str) -> Range:
    """The range of a dataclass's field. Errors: KeyError for a number that nobody gave one."""
    own = RANGES.get(f"{owner.__name__}.{name}")
    return RANGES[name] if own is None else own


def expected_of(owner: type, name: str) -> str:
    """What a dataclass's field takes, as a message says it."""
    return _expected(_hints(owner)[name], lambda: range_of(owner, name))


def check(name: str, value: object, allowed: Range, kind: type = float) -> None:
    """Errors: ValueError unless `value` is a number of that kind (`int` takes whole ones alone) in range."""
    _require(name, value, kind, lambda: allowed)


def check_fields(config: Any, called: Callable[[str], str] = str) -> None:
    """Check the types and numbers of a dataclass.

    Args:
        called: a field's name as the message gives it.

    Errors: ValueError naming the field, what it takes, and what it got.
    """
    hints = _hints(type(config))
    for field in fields(config):
        name = field.name
        if not isinstance(hints[name], str):  # a name that its module knows only while types are checked
            _require(
                called(name), getattr(config, name), hints[name], lambda n=name: range_of(type(config), n)
            )


def _hints(kind: type) -> dict[str, Any]:
    """Types of a dataclass's fields, also where its module keeps annotations as text."""
    try:
        return get_type_hints(kind)
    except NameError:
        return {field.name: field.type for field in fields(kind)}


def has_numbers(annotation: Any) -> bool:
    """Whether a field of this type holds numbers, and so needs a range."""
    if get_origin(annotation) in (Annotated, Union, UnionType, tuple):
        return any(map(has_numbers, get_args(annotation)))
    return annotation in (int, float)


def _require(name: str, value: object, annotation: Any, allowed: Callable[[], Range]) -> None:
    if not _fits(value, annotation, allowed):
        hint = allowed().hint if has_numbers(annotation) and isinstance(value, int | float) else ""
        expected = _expected(annotation, allowed)
        raise ValueError(f"{name} must be {expected}, got {_got(value)}" + (f" ({hint})" if hint else ""))


def _fits(value: Any, annotation: Any, allowed: Callable[[], Range]) -> bool:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _fits(value, args[0], allowed)
    if origin in (Union, UnionType):
        return any(_fits(value, kind, allowed) for kind in args)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if origin is tuple:
        kinds = [args[0]] * len(value) if isinstance(value, tuple) and args[-1] is Ellipsis else args
        return (
            isinstance(value, tuple)
            and len(value) == len(kinds)
            and all(_fits(one, kind, allowed) for one, kind in zip(value, kinds, strict=True))
        )
    if annotation in (int, float):
        kind = Integral if annotation is int else Real
        return isinstance(value, kind) and not isinstance(value, bool) and allowed().holds(value)  # type: ignore[arg-type]
    return not isinstance(annotation, type) or annotation not in _PLAIN or isinstance(value, annotation)


_PLAIN = (bool, str, NoneType)
"""Types that are checked as they are; what else a dataclass holds has checks of its own."""


def _expected(annotation: Any, allowed: Callable[[], Range]) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, Union, UnionType):
        kinds = args[:1] if origin is Annotated else args
        return " or ".join(_expected(kind, allowed) for kind in kinds if kind is not NoneType)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is tuple:
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        if not has_numbers(args[0]):
            return f"{count}values, each {_expected(args[0], allowed)}"
        return f"{count}{'whole ' if args[0] is int else ''}numbers {allowed()}"
    if annotation in (int, float):
        return f"a {'whole ' if annotation is int else ''}number {allowed()}"
    return {bool: "True or False", str: "text", Path: "a path"}.get(annotation, str(annotation))


def _got(value: object) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _shown(bound: float) -> str:
    if bound == 2**64 - 1:
        return "2**64 - 1"
    return f"{bound:,.0f}".replace(",", "_") if bound >= 10_000 else f"{bound:g}"
