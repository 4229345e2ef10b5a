"""How much faster one checkout is than another: the same decode steps timed in turn in one run.

    git worktree add ../before 5c743fc
    python benchmarks/compare_checkouts.py ../before . --dtype float32 --repeats 5 --json out.json

Each checkout runs in a process of its own, which waits while the other one computes. Models are of released
sizes with random weights, built and timed by the code of this script's checkout on the library of the
compared one. `maskgit-scenes` is a whole decode with its bundled shortcut; everything else is the step in the
middle of a decode. Ratios are of medians; `best_ratio` is of the fastest repeats, which other load on the
machine disturbs less.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

HERE = Path(__file__).resolve().parents[1]

SUBJECTS = {
    "maskgit-512 full": {"model": "maskgit-512"},
    "maskgit-512 shortcut": {"model": "maskgit-512", "kind": "shortcut"},
    "meissonic-512 full": {"model": "meissonic-512"},
    "lumina-dimoo full, 2 layers": {"model": "lumina-dimoo", "layers": 2},
    "mar-b full, batch 4": {"model": "mar-b", "batch": 4},
    "maskgit-scenes shortcut decode": {"model": "maskgit-scenes", "kind": "decode"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Seconds of both checkouts, one a repeat."""

    subject: str
    dtype: str
    before_s: tuple[float, ...]
    after_s: tuple[float, ...]
    ratio: float
    best_ratio: float


class Worker:
    """A process that runs one subject on one checkout, once each time it is asked."""

    def __init__(self, checkout: Path, subject: str, dtype: str) -> None:
        words = [sys.executable, __file__, "--worker", subject, "--dtype", dtype]
        environment = os.environ | {"PYTHONPATH": str(checkout.resolve() / "src")}
        self._process = subprocess.Popen(
            words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._hear()  # ready

    def run(self) -> float:
        """Seconds of one run."""
        _stream(self._process.stdin).write("go\n")
        _stream(self._process.stdin).flush()
        return float(self._hear())

    def close(self) -> None:
        _stream(self._process.stdin).close()
        self._process.wait()

    def _hear(self) -> str:
        line = _stream(self._process.stdout).readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self._process.args))} failed")  # type: ignore[arg-type]
        return line


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def compare(before: Path, after: Path, subject: str, dtype: str, repeats: int) -> Row:
    """Times of both, after one run each that does not count."""
    workers = Worker(before, subject, dtype), Worker(after, subject, dtype)
    rounds = [tuple(worker.run() for worker in workers) for _ in range(repeats + 1)][1:]
    for worker in workers:
        worker.close()
    before_s, after_s = zip(*rounds, strict=True)
    return Row(
        subject=subject,
        dtype=dtype,
        before_s=before_s,
        after_s=after_s,
        ratio=statistics.median(before_s) / statistics.median(after_s),
        best_ratio=min(before_s) / min(after_s),
    )


def work(subject: str, dtype: str) -> None:
    """Answer every line of the input with the seconds of one run."""
    run = _task(**{"kind": "full", "layers": None, "batch": 1, **SUBJECTS[subject]}, dtype=dtype)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(run(), flush=True)


def _task(*, model: str, kind: str, layers: int | None, batch: int, dtype: str) -> Callable[[], float]:
    import torch

    from swiftmask import accelerate, load

    if kind == "decode":
        fast = accelerate(load(model, dtype=dtype, device="cpu"), shortcut=f"{model}-shortcut")
        return lambda: fast.generate(labels=[0] * batch, steps=16).cost.seconds
    models, speed = _ours("cli/random_models.py"), _ours("evaluate/speed.py")
    pipeline = models.random_pipeline(model, dtype=getattr(torch, dtype), layers=layers)
    if kind == "shortcut":
        network, full_steps = models.random_shortcut(pipeline)
        pipeline = accelerate(pipeline, shortcut=network, full_steps=full_steps)
    step = speed.step_task(_step_kind(speed, kind, pipeline), batch)

    def seconds() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            step()
        return time.perf_counter() - started

    return seconds


def _step_kind(speed: ModuleType, name: str, pipeline: Any) -> Any:
    from swiftmask.core.decode import FullFeatures

    return speed.StepKind(
        name=name,
        model=pipeline.model,
        features_fn=pipeline.features_fn or FullFeatures(pipeline.model),
        schedule=pipeline.schedule(),
        flops=0,
        accelerated=pipeline.features_fn is not None,
    )


def _ours(path: str) -> ModuleType:
    """A module of this script's checkout, on whatever library is imported."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, HERE / "src" / "swiftmask" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _commit(checkout: Path) -> str:
    words = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("before", type=Path, nargs="?", help="a checkout")
    parser.add_argument("after", type=Path, nargs="?", help="another one")
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the report here as well")
    parser.add_argument("--worker", choices=list(SUBJECTS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker is None and chosen.after is None:
        parser.error("give two checkouts")
    return chosen


def main() -> None:
    chosen = _arguments()
    if chosen.worker is not None:
        work(chosen.worker, chosen.dtype)
        return
    from swiftmask.recipes.provenance import measurement

    rows = []
    for subject in chosen.subjects:
        row = compare(chosen.before, chosen.after, subject, chosen.dtype, chosen.repeats)
        rows.append(asdict(row))
        before_ms, after_ms = (1000 * statistics.median(times) for times in (row.before_s, row.after_s))
        print(
            f"{subject}, {chosen.dtype}: {before_ms:.1f} -> {after_ms:.1f} ms, {row.ratio:.2f}x "
            f"(fastest {row.best_ratio:.2f}x)",
            flush=True,
        )
    commits = {"before": _commit(chosen.before), "after": _commit(chosen.after)}
    report = {"commits": commits, "repeats": chosen.repeats, **measurement("cpu"), "rows": rows}
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
