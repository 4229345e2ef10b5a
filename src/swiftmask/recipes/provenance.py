"""Where a trained checkpoint, or a measured number, comes from: written beside it."""

import platform
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch

from swiftmask.core.writing import write_text
from swiftmask.data.sources.folder import NOTICES, notice_in
from swiftmask.registry import WEIGHTS, bundled_names
from swiftmask.training.metrics import LOG_NAME, hours_of
from swiftmask.training.setup import TrainingConfig


def provenance(
    name: str, training: TrainingConfig, run: Path, *, data: object, **facts: object
) -> dict[str, object]:
    """Recipe, command, settings, hours, data, commit, date and machine of a run, by its folder."""
    return {
        "recipe": name,
        "command": f"swiftmask train {name}",
        "training": asdict(training),
        "hours": round(hours_of(run / LOG_NAME), 2),
        "data": data,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        **facts,
    }


def write_notice(folder: Path, *notices: str) -> None:
    """Write `NOTICE.md` beside weights: the notices of the data and of the models that they come from.

    Args:
        notices: texts; empty ones and repetitions are left out, and without any there is no file.
    """
    texts = dict.fromkeys(text.strip() for text in notices if text.strip())
    if texts:
        write_text(folder / NOTICES[0], "\n\n".join(texts) + "\n")


def notice_of(model: str) -> str:
    """The notice in the folder of a model, by path or bundled name; empty without one."""
    path = Path(model).expanduser() if model else Path()
    folder = WEIGHTS / model if model in bundled_names() else path
    return notice_in(folder) if model and folder.is_dir() else ""


def commit() -> str:
    """The checkout's commit, or "unknown" for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """Processor, core count and torch version, for the record beside a measured number."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        processor = names[0] if names else processor
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{processor}, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}"


def measurement(device: str) -> dict[str, object]:
    """Where, when and by which command a script of benchmarks/ measured."""
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python", *sys.argv]),
    }
