"""benchmarks/gpu.py on a CPU: what it measures, and that no failure takes the other figures along."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

ROW = {"kind": "full", "compiled": False, "ms": 1.0, "iqr_ms": 0.1, "peak_memory_bytes": 10}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("gpu")
    del sys.modules["gpu"]


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        ("maskgit-scenes", {"full", "shortcut"}),
        pytest.param("mar-scenes", {"full", "marval"}, marks=pytest.mark.slow),
        ("meissonic-scenes", {"full"}),
        ("dimoo-scenes", {"full", "shortcut", "ml-cache"}),
    ],
)
def test_the_rehearsal_measures_every_kind_of_step_and_an_update(gpu, model, kinds) -> None:
    entries: list = []
    gpu.measure_run(gpu.Run(model=model, compiled=False, seconds=60), gpu.REHEARSAL, entries.append)
    assert not [entry for entry in entries if isinstance(entry, gpu.Failure)]
    wanted = {(kind, batch) for kind in kinds for batch in (1, 2)} | {("update", 2)}
    assert {(row.kind, row.batch) for row in entries} == wanted
    assert all(row.ms > 0 and row.peak_memory_bytes > 0 for row in entries)


def test_a_part_that_fails_leaves_the_others(gpu, monkeypatch) -> None:
    def step_rows(run, kinds, scale, *, batch):
        if batch == 1:
            raise RuntimeError("CUDA out of memory\nand much more")
        return [gpu.Row(model=run.model, batch=batch, **ROW)]

    monkeypatch.setattr(gpu, "step_rows", step_rows)
    entries: list = []
    gpu.measure_run(gpu.Run(model="maskgit-scenes", compiled=True, seconds=60), gpu.REHEARSAL, entries.append)
    failure, row = entries
    assert (failure.part, failure.reason) == ("batch 1", "RuntimeError: CUDA out of memory")
    assert row.batch == 2


def test_a_run_that_dies_or_hangs_leaves_the_others_and_the_report_says_so(
    gpu, tmp_path, monkeypatch
) -> None:
    def command_of(run, path: Path) -> list[str]:
        rows = [json.dumps({"model": run.model, "batch": 1, **ROW, "compiled": run.compiled})]
        script = f"open({str(path)!r}, 'w').write({rows[0]!r} + chr(10))\n"
        if run.model == "mar-scenes":
            script = "import os, sys; sys.stderr.write('no such kernel'); sys.stderr.flush(); os._exit(3)"
        if run.model == "meissonic-scenes":
            script += "import time; time.sleep(60)"
        return [sys.executable, "-c", script]

    runs = [gpu.Run(model=name, compiled=False, seconds=2) for name in gpu.REHEARSAL.models]
    monkeypatch.setattr(gpu, "runs", lambda scale: runs)
    monkeypatch.setattr(gpu, "LEAST_S", 0)
    report = gpu.supervise(gpu.REHEARSAL, tmp_path / "gpu", 60, command_of)
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == report["rows"]
    assert [row["model"] for row in report["rows"]] == ["maskgit-scenes", "meissonic-scenes", "dimoo-scenes"]
    reasons = {(f["model"], f["part"]): f["reason"] for f in report["failures"]}
    assert reasons["mar-scenes", "batch 1"] == "the process ended with code 3: no such kernel"
    assert reasons["meissonic-scenes", "batch 2"] == "stopped after 2 s"
    page = (tmp_path / "gpu.md").read_text()
    assert "| maskgit-scenes | full | 1 | 1.00 |" in page
    assert "* No figure for mar-scenes, eager, update: the process ended with code 3" in page


def test_nothing_is_started_when_the_budget_is_spent(gpu, tmp_path) -> None:
    report = gpu.supervise(gpu.REHEARSAL, tmp_path / "gpu", 0, lambda run, path: pytest.fail("started"))
    assert report["rows"] == []
    assert len(report["failures"]) == sum(len(run.parts(gpu.REHEARSAL)) for run in gpu.runs(gpu.REHEARSAL))
    assert "not started" in report["failures"][0]["reason"]


def test_without_a_gpu_one_line_says_how_to_rehearse(gpu, capsys) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "use --rehearse" in capsys.readouterr().err
