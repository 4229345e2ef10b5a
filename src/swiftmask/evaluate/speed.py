"""Time, memory and operations of one decode step of each kind, beside the machine's matmul peak.

A step is the decode loop's own: features (all guidance branches in one forward), head, sampling, writing.
Tasks are timed in turn, round after round, so that other load on the machine hits all of them alike. Figures
are medians and interquartile ranges after warm-up rounds that do not count. Speed does not depend on the
weights, so random ones will do (cli/random_models.py builds the released sizes).
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from swiftmask.core.decode import decode, prepare_condition
from swiftmask.core.protocol import Condition, FeatureFn, MaskedGenerator
from swiftmask.core.rng import SeededNoise
from swiftmask.core.types import Canvas, Features, Record, Schedule, Step
from swiftmask.evaluate.memory import peak_memory_bytes, reset_peak_memory

Task = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of every repeat of one task."""

    seconds: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return 1000 * statistics.median(self.seconds)

    @property
    def iqr_ms(self) -> float:
        """Interquartile range."""
        if len(self.seconds) < 2:
            return 0.0
        quartiles = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return 1000 * (quartiles[2] - quartiles[0])

    @property
    def best_s(self) -> float:
        return min(self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepKind:
    """One way to compute a decode step.

    Attributes:
        name: "full", "shortcut", "ml-cache" or "marval".
        model: the base model, or the student in its place.
        features_fn: `FullFeatures(model)`, or the accelerator that replaces the backbone.
        schedule: of a whole decode; `full` says which of its steps run the backbone.
        flops: operations of the timed step of one image.
        accelerated: whether the timed step skips the backbone.
    """

    name: str
    model: MaskedGenerator
    features_fn: FeatureFn
    schedule: Schedule
    flops: int
    accelerated: bool

    @property
    def index(self) -> int:
        """The step that is timed: the one in the middle of the decode."""
        return middle(self.schedule)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """What a step of one kind costs; times, operations and memory are of the whole batch.

    Attributes:
        peak_share: operations per second over those of the fastest matmul.
        peak_memory_bytes: during one step (resident memory of the process on a CPU, allocator on a GPU).
        speedup: time of a step of the first kind, the full model's, over this one's.
        full_steps: how many steps of the decode run the backbone.
        decode_share: time of the decode over that of one with all steps as the first kind, added up from the
            measured steps.
    """

    kind: str
    ms: float
    iqr_ms: float
    flops: int
    peak_share: float
    peak_memory_bytes: int
    speedup: float
    full_steps: int
    decode_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedReport:
    """What `swiftmask bench speed` prints, with the same keys for every model.

    Attributes:
        kinds: the full step first.
        steps: of the whole decode.
        compile_mode: of `torch.compile`; None where nothing is compiled.
        matmul_peak_flops: operations per second of the fastest square matmul in the same run.
        matmul_precision: of float32 matmuls on a GPU, as in torch.set_float32_matmul_precision.
    """

    model: str
    kinds: tuple[StepCost, ...]
    matmul_peak_flops: float
    steps: int
    batch: int
    repeats: int
    dtype: str
    matmul_precision: str
    compile_mode: str | None
    device: str
    threads: int
    machine: str
    torch: str
    commit: str
    command: str


def time_in_turn(
    tasks: Mapping[str, Task],
    device: torch.device,
    *,
    repeats: int,
    warmup: int = 2,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Time every task once per round.

    Errors: ValueError for less than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"at least 1 repeat, got {repeats}")
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    with torch.inference_mode():
        for index in range(warmup + repeats):
            for name, task in tasks.items():
                elapsed = seconds_of(task, device)
                if index >= warmup:
                    seconds[name].append(elapsed)
            on_round()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def seconds_of(task: Task, device: torch.device) -> float:
    """Of one call; on a GPU between events on its stream, with nothing else waiting there."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        task()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def matmul_task(size: int, device: torch.device, dtype: torch.dtype) -> tuple[Task, int]:
    """A square matmul, and its operations."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out), 2 * size**3


def middle(schedule: Schedule) -> int:
    """Index of the step in the middle of a decode. Errors: ValueError for fewer than two steps."""
    if len(schedule) < 2:
        raise ValueError(f"a step is timed after another: expected at least 2 steps, got {len(schedule)}")
    return len(schedule) // 2


def measure_steps(
    kinds: Sequence[StepKind],
    *,
    dtype: torch.dtype,
    batch: int = 1,
    repeats: int = 10,
    matmul_sizes: Sequence[int] = (2048, 4096),
    on_round: Callable[[], None] = lambda: None,
) -> tuple[float, tuple[StepCost, ...]]:
    """Matmul peak in operations per second, and the cost of every kind of step, all timed in turn.

    Args:
        kinds: the full model's first: speed-ups are against it.
        dtype: of the matmuls.
        matmul_sizes: sides of the square matmuls.
        on_round: called `num_rounds(repeats)` times.
    """
    device = kinds[0].model.device
    steps = {kind.name: step_task(kind, batch) for kind in kinds}
    matmuls = {f"matmul-{size}": matmul_task(size, device, dtype) for size in matmul_sizes}
    timings = time_in_turn(
        steps | {name: task for name, (task, _) in matmuls.items()},
        device,
        repeats=repeats,
        on_round=on_round,
    )
    peak = max(flops / timings[name].best_s for name, (_, flops) in matmuls.items())
    full_ms = timings[kinds[0].name].median_ms
    costs = []
    for kind in kinds:
        timing, flops, num_steps = timings[kind.name], batch * kind.flops, len(kind.schedule)
        num_full = sum(step.full for step in kind.schedule)
        at_full_ms = full_ms if kind.accelerated else timing.median_ms
        total_ms = num_full * at_full_ms + (num_steps - num_full) * timing.median_ms
        costs.append(
            StepCost(
                kind=kind.name,
                ms=timing.median_ms,
                iqr_ms=timing.iqr_ms,
                flops=flops,
                peak_share=flops / (timing.median_ms / 1000) / peak,
                peak_memory_bytes=memory_of(steps[kind.name], device),
                speedup=full_ms / timing.median_ms,
                full_steps=num_full,
                decode_share=total_ms / (num_steps * full_ms),
            )
        )
    return peak, tuple(costs)


def num_rounds(repeats: int, warmup: int = 2) -> int:
    """How often every task is run."""
    return repeats + warmup


def memory_of(task: Task, device: torch.device) -> int:
    """Peak memory in bytes during one call."""
    reset_peak_memory(device)
    with torch.inference_mode():
        task()
    return peak_memory_bytes(device)


def step_task(kind: StepKind, batch: int) -> Task:
    """The timed step of `kind`, ready to run again and again.

    The step before it runs here, with the backbone. Which tokens are on the canvas does not matter for speed,
    only how many are masked: they are random.
    """
    model, before, step = kind.model, kind.schedule[kind.index - 1], kind.schedule[kind.index]
    first = 0 if model.spec.draws == "class" else "a"
    with torch.inference_mode():
        condition = prepare_condition(model, model.encode([first] * batch), kind.schedule)  # type: ignore[list-item]
        canvas = random_canvas(model, before.num_masked_before, batch)
        previous = _run_step(model, condition, replace(before, full=True), canvas, kind.features_fn)
    timed, features_fn = replace(step, full=not kind.accelerated), _Continued(kind.features_fn, previous)
    return lambda: _run_step(model, condition, timed, previous.after, features_fn)


@dataclass(frozen=True, slots=True)
class _Continued:
    """A feature function in the middle of a decode: `previous` is what the step before recorded."""

    inner: FeatureFn
    previous: Record

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def settings(self) -> tuple[object, ...]:
        return self.inner.settings

    def __call__(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        return self.inner(canvas, condition, step, self.previous)


def _run_step(
    model: MaskedGenerator, condition: Condition, step: Step, canvas: Canvas, features_fn: FeatureFn
) -> Record:
    noise = SeededNoise(range(len(condition)), model.spec.num_tokens, model.device)
    unmask = model.unmask_rule(canvas, noise)
    records: list[Record] = []
    decode(
        model,
        condition,
        [step],
        noise,
        canvas=canvas,
        features_fn=features_fn,
        unmask=unmask,
        on_step=records.append,
    )
    return records[0]


def random_canvas(model: MaskedGenerator, num_masked: int, batch: int) -> Canvas:
    """Random tokens, of which a random `num_masked` of every image are masked."""
    spec, blank = model.spec, model.blank(batch)
    order_BL = torch.rand(batch, spec.num_tokens, device=model.device).argsort(dim=1)
    masked_BL = order_BL < num_masked
    if spec.codebook_size is None:
        return Canvas(torch.randn_like(blank.tokens_BL), masked_BL, num_masked)
    codes_BL = torch.randint(spec.codebook_size, (batch, spec.num_tokens), device=model.device)
    return Canvas(torch.where(masked_BL, blank.tokens_BL, codes_BL), masked_BL, num_masked)
