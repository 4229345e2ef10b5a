"""Memory does not grow with the number of images: of `generate`, of describing them, and of their metrics."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from swiftmask.cli import main
from swiftmask.cli.output_folder import OutputFolder
from swiftmask.evaluate.extractors import Identity, Readings
from swiftmask.evaluate.feature_store import CHUNK, describe
from swiftmask.evaluate.folder_metrics import MetricSettings, compare_sets
from swiftmask.evaluate.image_sets import ImageSet

STATUS = Path("/proc/self/status")
MB = 1 << 20

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="no /proc on this machine")


def memory(kind: str = "VmRSS") -> int:
    """Bytes of this process: now, or at most ("VmHWM")."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """From here on, VmHWM counts anew."""
    Path("/proc/self/clear_refs").write_text("5")


def test_generate(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the last of 320 images the process is as large as at the 80th."""
    save = OutputFolder.save
    objects: list[int] = []
    kept: list[int] = []
    sizes: list[int] = []

    def saved(folder: OutputFolder, *what: Any) -> None:
        save(folder, *what)
        sizes.append(memory())
        if len(sizes) in (80, 320):
            gc.collect()
            objects.append(len(gc.get_objects()))
            kept.append(sum(each.nbytes for each in gc.get_objects() if type(each) is Tensor))

    monkeypatch.setattr(OutputFolder, "save", saved)
    with pytest.raises(SystemExit, match="0"):
        main(["generate", str(tiny_folder), "0", "--num", "320", "--steps", "1", "--out", str(tmp_path)])
    assert len(sizes) == 320
    assert objects[1] - objects[0] < 240, "less than one object an image"
    assert kept[1] <= kept[0], "bytes of tensors"
    assert sizes[-1] - sizes[79] < 5 * MB, "28 kB an image were 6.7 MB"


class _Wide:
    """An extractor of random features, as wide as a chunk of them takes 8 MB."""

    identity = Identity(name="wide", sha256="0" * 64)

    def __init__(self, width: int) -> None:
        self._width = width

    def __call__(self, images_B3HW: Tensor) -> Readings:
        return {"features": torch.randn(len(images_B3HW), self._width)}


def _pictures(count: int) -> ImageSet:
    def images(indices: Sequence[int]) -> Tensor:
        return torch.rand(len(indices), 3, 2, 2)

    return ImageSet(count, f"{count} random ones", images)


def test_describing(tmp_path: Path) -> None:
    """Features go to disk chunk by chunk."""
    sizes: list[int] = []
    describe(
        _pictures(12 * CHUNK), _Wide(8192), tmp_path, on_progress=lambda done, total: sizes.append(memory())
    )
    assert len(sizes) == 13
    assert sizes[-1] - sizes[3] < 30 * MB, "9 chunks are 72 MB"


def test_metrics_of_images(tmp_path: Path) -> None:
    """Distances of pairs of images are held in blocks: all of them would be 122 MB, and those of three
    comparisons are needed.
    """
    settings, peaks = MetricSettings(kid_subsets=2, kid_subset_size=100), []
    for count in (1000, 4000):
        ours, real = (
            describe(_pictures(count), _Wide(16), tmp_path / f"{name}-{count}") for name in ("a", "b")
        )
        forget_peak()
        before = memory()
        assert compare_sets(ours, real, settings).floor_pictures == count // 2
        peaks.append(memory("VmHWM") - before)
    assert peaks[1] < 250 * MB, f"{peaks[1] // MB} MB; without blocks, more than 350"
