"""How long one decode step takes, with and without the backbone, beside what the machine's matmul can do.

A step is the decode loop's own: features (all guidance branches in one forward), head, sampling, writing.
The tasks are timed in turn, round after round, so that whatever else the machine does hits all of them alike;
medians and interquartile ranges are reported, after warm-up rounds that do not count. Speed does not depend
on the weights, so random ones do.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
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
class SpeedReport:
    """What `swiftmask bench speed` prints; operations and times are of a whole batch.

    Attributes:
        ratio: how many shortcut steps one full step costs.
        peak_share: achieved operations per second of a full step over `matmul_peak_flops`.
        share: time of `steps` steps with `full_steps` full ones over that of all full ones.
        share_from: how `share` came about.
        peak_memory_bytes: while the steps ran (process on a CPU, allocator on a GPU).
    """

    full_step_ms: float
    shortcut_step_ms: float
    full_step_flops: int
    matmul_peak_flops: float
    peak_share: float
    peak_memory_bytes: int
    ratio: float
    share: float
    share_from: str
    shortcut_step_flops: int
    full_step_iqr_ms: float
    shortcut_step_iqr_ms: float
    steps: int
    full_steps: int
    batch: int
    repeats: int
    model: str
    dtype: str
    device: str
    threads: int
    machine: str
    torch: str
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
                elapsed = _time_once(task, device)
                if index >= warmup:
                    seconds[name].append(elapsed)
            on_round()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def _time_once(task: Task, device: torch.device) -> float:
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


def step_tasks(
    model: MaskedGenerator, accelerated: FeatureFn, schedule: Schedule, *, index: int, batch: int
) -> tuple[Task, Task]:
    """Step `index` of the decode loop with the full model, and with `accelerated` in place of the backbone.

    Which tokens are on the canvas does not matter for speed, only how many are masked: they are random.
    """
    if not 1 <= index < len(schedule):
        raise ValueError(f"the step to time must be one of 1..{len(schedule) - 1}, got {index}")
    first = 0 if model.spec.draws == "class" else ""
    condition = prepare_condition(model, model.encode([first] * batch), schedule)  # type: ignore[list-item]
    canvas = _random_canvas(model, schedule[index - 1].num_masked_before, batch)
    records: list[Record] = []
    with torch.inference_mode():
        _run_step(
            model, condition, replace(schedule[index - 1], full=True), canvas, accelerated, records.append
        )
    previous = records[0]
    full, fast = replace(schedule[index], full=True), replace(schedule[index], full=False)
    after = previous.after
    return (
        lambda: _run_step(model, condition, full, after, FullFeatures(model)),
        lambda: _run_step(model, condition, fast, after, _Continued(accelerated, previous)),
    )


@dataclass(frozen=True, slots=True)
class _Continued:
    """A feature function in the middle of a decode: `previous` is what the step before recorded."""

    inner: FeatureFn
    previous: Record

    @property
    def name(self) -> str:
        return self.inner.name

    def __call__(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        return self.inner(canvas, condition, step, self.previous)


def _run_step(
    model: MaskedGenerator,
    condition: Condition,
    step: Step,
    canvas: Canvas,
    features_fn: FeatureFn,
    on_step: Callable[[Record], None] | None = None,
) -> None:
    noise = SeededNoise(range(len(condition)), model.spec.num_tokens, model.device)
    unmask = model.unmask_rule(canvas, noise)
    decode(
        model,
        condition,
        [step],
        noise,
        canvas=canvas,
        features_fn=features_fn,
        unmask=unmask,
        on_step=on_step,
    )


def _random_canvas(model: MaskedGenerator, num_masked: int, batch: int) -> Canvas:
    spec = model.spec
    if spec.codebook_size is None:
        raise ValueError(f"{spec.name} has continuous tokens: its steps cannot be timed yet")
    order_BL = torch.rand(batch, spec.num_tokens, device=model.device).argsort(dim=1)
    codes_BL = torch.randint(spec.codebook_size, (batch, spec.num_tokens), device=model.device)
    masked_BL = order_BL < num_masked
    return Canvas(codes_BL.masked_fill(masked_BL, spec.mask_id), masked_BL, num_masked)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedSetup:
    """What to time.

    Attributes:
        full_flops, fast_flops: operations of a full and of an accelerated step, whole batch.
        decodes: whole decodes (accelerated, full) to time as well; None computes their ratio from the steps.
        matmul_sizes: sides of the square matmuls; the fastest counts as the peak.
    """

    model: MaskedGenerator
    accelerated: FeatureFn
    schedule: Schedule
    full_flops: int
    fast_flops: int
    dtype: torch.dtype
    batch: int = 1
    repeats: int = 10
    decodes: tuple[Task, Task] | None = None
    matmul_sizes: tuple[int, ...] = (2048, 4096)

    @property
    def num_rounds(self) -> int:
        return self.repeats + 2


def measure_speed(
    setup: SpeedSetup,
    *,
    model_name: str,
    machine: str,
    command: str,
    on_round: Callable[[], None] = lambda: None,
) -> SpeedReport:
    """Time full steps, accelerated steps and matmuls in turn; `schedule` says where the full steps lie."""
    device = setup.model.device
    full, fast = middle_step_tasks(setup)
    tasks = {"full": full, "fast": fast} | matmul_tasks(setup)
    reset_peak_memory(device)
    timings = time_in_turn(tasks, device, repeats=setup.repeats, on_round=on_round)
    return speed_report(setup, timings, model_name=model_name, machine=machine, command=command)


def middle_step_tasks(setup: SpeedSetup) -> tuple[Task, Task]:
    """The step in the middle of the schedule, full and accelerated."""
    index = max(1, len(setup.schedule) // 2)
    return step_tasks(setup.model, setup.accelerated, setup.schedule, index=index, batch=setup.batch)


def matmul_tasks(setup: SpeedSetup) -> dict[str, Task]:
    """Square matmuls by name."""
    device, dtype = setup.model.device, setup.dtype
    return {f"matmul-{size}": matmul_task(size, device, dtype)[0] for size in setup.matmul_sizes}


def speed_report(
    setup: SpeedSetup, timings: Mapping[str, Timing], *, model_name: str, machine: str, command: str
) -> SpeedReport:
    """From the timings "full", "fast" and those of `matmul_tasks`, and the peak memory so far."""
    device, steps = setup.model.device, len(setup.schedule)
    num_full = sum(step.full for step in setup.schedule)
    share, share_from = _share(setup, timings, num_full)
    peak = max(2 * size**3 / timings[f"matmul-{size}"].best_s for size in setup.matmul_sizes)
    full_ms, fast_ms = timings["full"].median_ms, timings["fast"].median_ms
    return SpeedReport(
        full_step_ms=full_ms,
        shortcut_step_ms=fast_ms,
        full_step_flops=setup.full_flops,
        matmul_peak_flops=peak,
        peak_share=setup.full_flops / (full_ms / 1000) / peak,
        peak_memory_bytes=peak_memory_bytes(device),
        ratio=full_ms / fast_ms,
        share=share,
        share_from=share_from,
        shortcut_step_flops=setup.fast_flops,
        full_step_iqr_ms=timings["full"].iqr_ms,
        shortcut_step_iqr_ms=timings["fast"].iqr_ms,
        steps=steps,
        full_steps=num_full,
        batch=setup.batch,
        repeats=setup.repeats,
        model=model_name,
        dtype=str(setup.dtype).removeprefix("torch."),
        device=str(device),
        threads=torch.get_num_threads(),
        machine=machine,
        torch=torch.__version__,
        command=command,
    )


def _share(setup: SpeedSetup, timings: Mapping[str, Timing], num_full: int) -> tuple[float, str]:
    steps = len(setup.schedule)
    if setup.decodes is None:
        full_ms, fast_ms = timings["full"].median_ms, timings["fast"].median_ms
        share = (num_full * full_ms + (steps - num_full) * fast_ms) / (steps * full_ms)
        return share, "computed from the measured steps"
    names = ("accelerated", "vanilla")
    whole = time_in_turn(
        dict(zip(names, setup.decodes, strict=True)), setup.model.device, repeats=3, warmup=1
    )
    return whole["accelerated"].median_ms / whole["vanilla"].median_ms, "measured whole decodes, median of 3"
