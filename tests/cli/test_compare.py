"""`swiftmask compare`: numbers of a folder of images, found again, shared, and refused in one line."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor, nn

from swiftmask.cli import main
from swiftmask.cli.loading import own_device
from swiftmask.cli.progress import counted
from swiftmask.evaluate.extractors import files_sha256, load_extractor
from swiftmask.evaluate.feature_store import describe
from swiftmask.evaluate.folder_metrics import MetricSettings, compare_sets
from swiftmask.evaluate.image_sets import folder_images
from swiftmask.evaluate.processes import Processes

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

KINDS = ("fd", "is", "kid", "precision", "recall", "density", "coverage")


class Means(nn.Module):
    """Means of the colours as features, and of two halves as logits."""

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        return images_B3HW.mean(dim=(2, 3)), 9 * images_B3HW.mean(dim=(1, 2))[:, :2]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with generated images (`ours`), real ones (`real`, `large`) and an extractor, `means.pt`."""
    root = tmp_path_factory.mktemp("sets")
    save(root / "ours", 12, darker=2)
    save(root / "real", 26)
    save(root / "large", 12, size=(13, 17))
    for name, network in (("means", Means()), ("other", nn.AvgPool2d(6))):
        torch.jit.script(network).save(str(root / f"{name}.pt"))  # pyright: ignore[reportAttributeAccessIssue]
    return root


@pytest.fixture
def here(sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `sets` as the working directory."""
    monkeypatch.chdir(shutil.copytree(sets, tmp_path / "here"))
    return Path.cwd()


def save(folder: Path, count: int, *, size: tuple[int, int] = (6, 6), darker: int = 1) -> None:
    folder.mkdir()
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3)) // darker
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:03d}.png")


def succeeded(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["compare", *(str(argument) for argument in arguments)])
    said = capsys.readouterr()
    assert stop.value.code == 0, said.err
    return said.out


def compared(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    return json.loads(succeeded(capsys, *arguments, "--json"))


def by_name(found: dict[str, Any]) -> dict[str, float]:
    return {metric["name"]: metric["value"] for metric in found["metrics"]}


AGAINST_REAL = ("ours", "--reference", "real", "--extractor", "means.pt")


def test_against_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, *AGAINST_REAL, "--nearest", 2, "--splits", 4)
    extractor = load_extractor("means.pt")
    ours, real = (describe(folder_images(name), extractor, here / f"own-{name}") for name in ("ours", "real"))
    expected = compare_sets(ours, real, MetricSettings(nearest=2, splits=4))
    assert by_name(found) == {metric.name: metric.value for metric in expected.metrics}
    assert [metric["floor"] for metric in found["metrics"]] == [m.floor for m in expected.metrics]
    assert list(by_name(found)) == [f"{kind}_means" for kind in KINDS]
    assert (found["pictures"], found["reference_pictures"], found["floor_pictures"]) == (12, 26, 12)
    assert found["extractor"] == {"name": "means", "sha256": files_sha256([here / "means.pt"])}
    assert (found["settings"]["nearest"], found["settings"]["splits"]) == (2, 4)
    assert found["versions"]["torch"] in found["machine"]
    assert len(found["date"]) == 10
    assert found["commit"]


def test_its_command_finds_it_again_and_describes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--crop", 6, "--batch-size", 5, "--out", "my features")
    first = compared(capsys, "ours", "--reference", "large", "--extractor", "means.pt", *options)
    parts = {path: path.stat().st_mtime_ns for path in (here / "my features").rglob("*.safetensors")}
    program, command, *arguments = shlex.split(first["command"])
    assert (program, command) == ("swiftmask", "compare")
    assert compared(capsys, *arguments) == first
    assert {path: path.stat().st_mtime_ns for path in parts} == parts


def test_the_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = succeeded(capsys, *AGAINST_REAL)
    found = compared(capsys, *AGAINST_REAL)
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    for metric in found["metrics"]:
        numbers = (metric["value"], metric["spread"], metric["floor"])
        assert rows[metric["name"]] == [f"{number:.5g}" for number in numbers if number is not None]
    lines = said.splitlines()
    assert "N = 12 images against 26; floor: 12 real ones against the other 14" in lines
    assert f"extractor means, sha256 {found['extractor']['sha256'][:12]}" in lines
    assert found["command"] in lines


def test_saved_statistics_are_a_reference(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, *AGAINST_REAL, "--save-statistics", "kept/real.safetensors")
    arguments = ("ours", "--extractor", "means.pt", "--reference")
    again = compared(capsys, *arguments, "kept/real.safetensors")
    assert by_name(again) == {
        name: pytest.approx(by_name(found)[name], rel=1e-6) for name in ("fd_means", "is_means")
    }
    assert again["left_out"] == [f"{kind}_means" for kind in KINDS[2:]]
    assert again["reference_pictures"] == 26
    assert "not given by this reference or extractor: kid_means" in succeeded(
        capsys, *arguments, "kept/real.safetensors"
    )


def test_statistics_of_others_are_a_reference(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features_XD = load_extractor("means.pt")(folder_images("real").images(range(26)))["features"].numpy()
    np.savez("adm.npz", mu=features_XD.mean(axis=0), sigma=np.cov(features_XD.T))
    found = compared(capsys, "ours", "--reference", "adm.npz", "--extractor", "means.pt")
    whole = compared(capsys, *AGAINST_REAL)
    assert by_name(found)["fd_means"] == pytest.approx(by_name(whole)["fd_means"], rel=1e-4)
    assert found["reference_pictures"] is None
    assert "N = 12 images against an unknown number; no floor" in succeeded(
        capsys, "ours", "--reference", "adm.npz", "--extractor", "means.pt"
    )


def test_a_reference_is_described_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever images are compared with it; changed ones are described anew, without a complaint."""
    compared(capsys, *AGAINST_REAL)
    (part,) = (here / "report/features").glob("means-*/real-*/*.safetensors")
    described = part.stat().st_mtime_ns
    (here / "ours/000.png").unlink()
    assert compared(capsys, *AGAINST_REAL)["pictures"] == 11
    assert part.stat().st_mtime_ns == described
    assert len(list((here / "report/features").glob("means-*/*"))) == 3


def test_the_bundled_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names no class, so there is no Inception Score."""
    save(tmp_path / "same", 10, size=(64, 64))
    folder, out = tmp_path / "same", tmp_path / "out"
    found = compared(capsys, folder, "--reference", folder, "--extractor", "scenes", "--out", out)
    assert by_name(found)["fd_scenes"] == pytest.approx(0.0, abs=1e-3)
    assert by_name(found)["precision_scenes"] == by_name(found)["recall_scenes"] == 1.0
    assert found["left_out"] == ["is_scenes"]


def damaged(here: Path) -> None:
    path = here / "ours/004.png"
    path.write_bytes(path.read_bytes()[:40])


def odd_one_out(here: Path) -> None:
    Image.new("RGB", (9, 6)).save(here / "ours/004.png")


def few(here: Path) -> None:
    for path in sorted((here / "ours").iterdir())[5:]:
        path.unlink()


def one(here: Path) -> None:
    for path in sorted((here / "ours").iterdir())[1:]:
        path.unlink()


def file(here: Path) -> None:
    (here / "file").write_text("nothing")


def foreign_statistics(here: Path) -> None:
    extractor = ("--extractor", "other.pt", "--save-statistics", "f.safetensors")
    with pytest.raises(SystemExit):
        main(["compare", "ours", "--reference", "real", *extractor])


def wide_statistics(here: Path) -> None:
    np.savez("wide.npz", mu=np.zeros(5), sigma=np.eye(5))


def untouched(here: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "arguments", "complaint"),
    [
        (damaged, "", "cannot read image ours/004.png"),
        (odd_one_out, "", "004.png is 9x6, the first image 6x6"),
        (few, "", "--nearest 3 and --splits 10 need at least 10 images on either side, and ours has 5"),
        (one, "", "ours has 1 images"),
        (untouched, "--extractor scene", "no such extractor: scene (expected 'scenes'"),
        (untouched, "--extractor ours/000.png", "ours/000.png is damaged or no TorchScript"),
        (untouched, "--device toaster", "unknown device 'toaster'"),
        (untouched, "--images nowhere", "no such image folder: nowhere"),
        (untouched, "--reference nowhere", "no such reference: nowhere (expected a folder of real images"),
        (untouched, "--reference means.pt", "means.pt is truncated or no safetensors file"),
        (untouched, "--reference large", "are 6x6, the real ones 17x13: metrics need one size; --crop"),
        (untouched, "--batch-size 0", "--batch-size must be a whole number between 1 and 1_048_576, got 0"),
        (untouched, "--crop 0", "--crop must be a whole number between 1 and 16_384, got 0"),
        (untouched, "--save-statistics s.npz", "--save-statistics s.npz: name a .safetensors file"),
        (foreign_statistics, "--reference f.safetensors", "f.safetensors was made with other weights"),
        (wide_statistics, "--reference wide.npz", "width 5, and extractor means gives width 3"),
        (foreign_statistics, "--reference f.safetensors --crop 6", "--crop goes with a folder of real"),
        (file, "--out file", "--out file: file is a file: name a folder"),
        (file, "--out file/x", "--out file/x: file is a file: name a folder"),
    ],
)
def test_mistakes_are_one_line(
    spoil: Callable[[Path], None],
    arguments: str,
    complaint: str,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(here)
    capsys.readouterr()
    options = {"--images": "ours", "--reference": "real", "--extractor": "means.pt"}
    words = shlex.split(arguments)
    options |= dict(zip(words[::2], words[1::2], strict=True))
    pictures = options.pop("--images")
    with pytest.raises(SystemExit) as stop:
        main(["compare", pictures, *(word for option in options.items() for word in option)])
    said = capsys.readouterr()
    assert stop.value.code == 2, said.err
    assert complaint in said.err
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1, said.err


def test_interrupted(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("swiftmask.evaluate.feature_store.describe", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["compare", *AGAINST_REAL])
    assert stop.value.code == 130
    assert "the same command continues" in capsys.readouterr().err


def test_the_time_left_is_of_what_is_left() -> None:
    """Images found described are no speed."""
    bar = Progress(disable=True)
    on_progress = counted(bar, "pictures")
    on_progress(500, 1000)
    (task,) = bar.tasks
    assert (task.description, task.completed, task.total) == ("pictures", 500, 1000)
    assert task.speed is None
    on_progress(756, 1000)
    assert task.completed == 756


def test_each_of_several_processes_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    processes = Processes.here()
    assert processes == Processes(rank=5, count=8)
    assert own_device(processes, "cuda") == torch.device("cuda", 1)
    assert own_device(processes, "cuda:0") == torch.device("cuda", 0)
    assert own_device(processes, "cpu") == torch.device("cpu")
    assert own_device(Processes(), "cuda") == torch.device("cuda")


@pytest.mark.slow
def test_two_processes_find_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(here / "ours")
    save(here / "ours", 300, darker=2)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = subprocess.run(
        [*launcher, "-m", "swiftmask", "compare", *AGAINST_REAL, "--out", "shared", "--json"],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    shared, alone = json.loads(done.stdout), compared(capsys, *AGAINST_REAL)
    assert shared["metrics"] == alone["metrics"]
    assert shared["pictures"] == 300


def test_equal_images_in_other_formats_are_equal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Greys of 8 bits, and the same in 16 bits, transparent, turned by EXIF, and in a palette."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = {"exif": exif, "lossless": True}
    (here / "plain").mkdir()
    (here / "deep").mkdir()
    for index in range(12):
        grey_HW = np.random.default_rng(index).integers(0, 256, (6, 6)).astype(np.uint8)
        clear_HW4 = np.dstack([np.full((6, 6, 3), 9), np.zeros((6, 6))]).astype(np.uint8)
        clear_HW4[1:] = np.dstack([grey_HW[1:]] * 3 + [np.full((5, 6), 255)])
        plain = grey_HW.copy()
        if index % 4 == 1:
            plain[0] = 255
        Image.fromarray(plain).save(here / f"plain/{index}.png")
        ways: list[tuple[Image.Image, str, dict[str, Any]]] = [
            (Image.fromarray(grey_HW.astype(np.uint16) * 257), "png", {}),
            (Image.fromarray(clear_HW4), "PNG", {}),
            (Image.fromarray(np.ascontiguousarray(np.rot90(grey_HW))).convert("RGB"), "WebP", turned),
            (Image.fromarray(grey_HW).convert("P"), "gif", {}),
        ]
        picture, suffix, options = ways[index % 4]
        picture.save(here / f"deep/{index}.{suffix}", suffix.upper(), **options)
    (here / "deep/x.heic").write_text("")
    arguments = ("deep", "--reference", "plain", "--extractor", "means.pt", "--json")
    for _ in range(2):  # the second time from the features that the first one kept
        with pytest.raises(SystemExit) as stop:
            main(["compare", *arguments])
        told = capsys.readouterr()
        assert stop.value.code == 0, told.err
        found = json.loads(told.out)
        assert by_name(found)["fd_means"] == pytest.approx(0, abs=1e-9)
        changed = {"depth": 3, "transparency": 3, "orientation": 3}
        assert found["converted"] == {"folder": changed, "reference": {}}
        assert "3 of 12 images had transparency: placed on white" in told.err
        assert "1 file in deep was passed over, not of a format that is read (1 .heic): x.heic" in told.err
    dark = compared(capsys, *arguments[:-1], "--background", "black")
    stored = compared(capsys, *arguments[:-1], "--ignore-orientation")
    assert len({x["decoding"] for x in (found, dark, stored)}) == 3
    assert by_name(dark)["fd_means"] > 1e-4
    assert stored["converted"]["folder"] == {"depth": 3, "transparency": 3, "unturned": 3}
