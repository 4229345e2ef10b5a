"""Every loader of files with every damage of its files: refused on one line that names the file, fast, and
without running code; or read as what it was.
"""

import contextlib
import io
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swiftmask.pipeline import Pipeline
from tests.hostile.damages import Damage, damages
from tests.hostile.loaders import LOADERS, Loader, Models, digest

pytestmark = pytest.mark.filterwarnings("ignore")

MOST_SECONDS = 2.0
"""Of this process on a CPU."""
MOST_BYTES = 500 * 2**20
"""More at the peak, after all damages of a file, than before."""


@pytest.fixture(scope="module")
def models(golden_maskgit, golden_mar, golden_meissonic, golden_dimoo, golden_shortcut) -> Models:
    return {
        "maskgit": golden_maskgit,
        "mar": golden_mar,
        "meissonic": golden_meissonic,
        "dimoo": golden_dimoo,
        "shortcut": golden_shortcut,
        "pipeline of mar": Pipeline(golden_mar),
        "pipeline of maskgit": Pipeline(golden_maskgit),
    }


CASES = [(name, file, kind) for name, loader in LOADERS.items() for file, kind in loader.files.items()]

SHARE = 32
"""One in so many damages of a file without `-m slow`, of every file others; files are in
the place of their neighbours.
"""


@pytest.mark.parametrize("place", range(len(CASES)), ids=[f"{name}: {file}" for name, file, _ in CASES])
def test_damaged_files(place: int, models: Models, tmp_path: Path, count: Callable[[int], None]) -> None:
    check_damages(place, models, tmp_path, count, of_default=True)


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(CASES)), ids=[f"{name}: {file}" for name, file, _ in CASES])
def test_all_damages(place: int, models: Models, tmp_path: Path, count: Callable[[int], None]) -> None:
    check_damages(place, models, tmp_path, count, of_default=False)


@pytest.mark.parametrize("kind", ["safetensors", "pickle", "json"])
def test_files_of_others(kind: str, models: Models, tmp_path: Path, count: Callable[[int], None]) -> None:
    check_swaps(kind, models, tmp_path, count, lambda distance: distance == 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "pickle", "json"])
def test_files_of_all_others(kind: str, models: Models, tmp_path: Path, count: Callable[[int], None]) -> None:
    check_swaps(kind, models, tmp_path, count, lambda distance: distance > 1)


def check_damages(
    place: int, models: Models, tmp_path: Path, count: Callable[[int], None], *, of_default: bool
) -> None:
    name, file, kind = CASES[place]
    loader, folder, path = made(name, file, tmp_path, models)
    sound, marker = path.read_bytes(), tmp_path / "code ran"
    expected = digest(loader.load(folder, models))
    assert digest(loader.load(folder, models)) == expected
    peak = peak_bytes()
    wrong, every = [], list(damages(path, kind, marker))
    share = min(SHARE, len(every))
    some = [d for number, d in enumerate(every) if (number % share == place % share) == of_default]
    for damage in some:
        put(path, damage.content)
        complaint = complaint_of(loader, folder, models, path, damage, expected)
        if complaint and f"{path.name}: {damage.name}" not in loader.undecided:
            wrong.append(f"{damage.name}: {complaint}")
        if marker.exists():
            wrong.append(f"{damage.name}: code ran")
            marker.rmdir() if marker.is_dir() else marker.unlink()
        put(path, sound)
    count(len(some))
    if peak_bytes() > peak + MOST_BYTES:
        wrong.append(f"{(peak_bytes() - peak) / 2**20:.0f} MB more were allocated")
    assert some
    if wrong:
        pytest.fail(f"{len(wrong)} of {len(some)} damages:\n" + "\n".join(wrong), pytrace=False)


def check_swaps(
    kind: str,
    models: Models,
    tmp_path: Path,
    count: Callable[[int], None],
    chosen: Callable[[int], bool],
) -> None:
    """Files in the place of others of their kind, which are so many places away."""
    names = [(name, file) for name, file, of_kind in CASES if of_kind == kind]
    there = [made(*name, tmp_path / str(place), models) for place, name in enumerate(names)]
    sound = [path.read_bytes() for _, _, path in there]
    wrong, number = [], 0
    for place, (loader, folder, path) in enumerate(there):
        expected = digest(loader.load(folder, models))
        others = [(place + distance) % len(there) for distance in range(1, len(there)) if chosen(distance)]
        for other in others:
            if sound[other] == sound[place] or names[other][0] == names[place][0]:
                continue
            number += 1
            put(path, sound[other])
            damage = Damage(f"{names[other]} for {names[place]}", sound[other], harmless=True)
            if complaint := complaint_of(loader, folder, models, path, damage, expected):
                wrong.append(f"{damage.name}: {complaint}")
        put(path, sound[place])
    count(number)
    if wrong:
        pytest.fail(f"{len(wrong)} of {number} files:\n" + "\n".join(wrong), pytrace=False)


def made(name: str, file: str, below: Path, models: Models) -> tuple[Loader, Path, Path]:
    """A loader, the folder that it reads, and the file in it that is damaged."""
    folder = below / "some files"
    folder.mkdir(parents=True)
    LOADERS[name].make(folder, models)
    (path,) = folder.glob(file)
    return LOADERS[name], folder, path


def complaint_of(
    loader: Loader, folder: Path, models: Models, path: Path, damage: Damage, expected: object
) -> str:
    """What is wrong with how a damage was met."""
    began = time.process_time()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found = digest(loader.load(folder, models))
    except (ValueError, OSError) as error:
        said = str(error)
        named = path.name in said or str(folder) in said
        complaints = (
            ("\n" in said, "several lines"),
            (not named, "does not name it"),
            (time.process_time() - began > MOST_SECONDS, f"took {time.process_time() - began:.1f} s"),
        )
        return next((f"{text}: {said!r:.200}" for wrong, text in complaints if wrong), "")
    except BaseException as error:
        return f"{type(error).__name__}: {error!s:.160}"
    if found != expected:
        return "accepted, as something else"
    return "" if damage.harmless else "accepted"


def put(path: Path, content: bytes | None) -> None:
    """Replace a file: what was read of the old one may still be mapped into memory."""
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
