"""Knobs to code, files and costs: what the page says does the same, does the same."""

import io
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import swiftmask
from swiftmask.cli import main
from swiftmask.serve.errors import RequestError
from swiftmask.serve.service import ImageService
from swiftmask.studio import markup
from swiftmask.studio.code import MASK, START, Source, command_of, python_of
from swiftmask.studio.gallery import Files, entry_of, png_bytes
from swiftmask.studio.session import Estimates, Knobs, Line, changed_knobs, requests_of, times_fewer

from .conftest import followed, knobs

MASKED = Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 2))
START_IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8))
CHOSEN = [
    knobs(),
    knobs(what=("3", "5"), num_images=2, seed=9),
    knobs(variant="tiny+reuse", steps=None, full_steps=None, guidance=3.0),
    knobs(temperature=0.9, choice_temperature=2.0, schedule_power=1.5, guidance=1.0),
    knobs(image=START_IMAGE, mask=MASKED),
]


@pytest.mark.parametrize("chosen", CHOSEN)
def test_the_command_and_the_python_give_the_same_images(
    chosen: Knobs, service: ImageService, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels, and the settings in the PNG files: a folder of downloads is one of `swiftmask generate`."""
    monkeypatch.chdir(tmp_path)
    (_, fast), _ = followed(service, chosen)
    source, files = Source(model=str(tiny_folder)), Files()
    sides = followed(service, chosen)[0]
    entry = entry_of(sides, chosen, service.catalogue, files)
    for name, image in ((START, chosen.image), (MASK, chosen.mask)):
        if image is not None:
            Path(name).write_bytes(png_bytes(image))
    command = command_of(chosen, service.catalogue, source)
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(command)[1:])
    assert stop.value.code == 0, command
    for picture in entry.fast:
        with (
            Image.open(io.BytesIO(files.find(picture.file) or b"")) as ours,
            Image.open(Path("pictures") / picture.file_name) as theirs,
        ):
            assert np.array_equal(np.array(ours), np.array(theirs))
            assert ours.info["swiftmask"] == theirs.info["swiftmask"]
    space: dict[str, Any] = {}
    monkeypatch.setattr(Image.Image, "show", lambda image: None)
    exec(python_of(chosen, service.catalogue, source), space)
    for ours, theirs in zip(fast.images, space["result"].images, strict=True):
        assert np.array_equal(np.array(ours), np.array(theirs))


def test_the_preset_of_an_entry_gives_its_images(
    service: ImageService, tiny_folder: Path, tmp_path: Path
) -> None:
    chosen, files = knobs(steps=5, full_steps=3, guidance=2.0), Files()
    sides, _ = followed(service, chosen)
    entry = entry_of(sides, chosen, service.catalogue, files)
    path = tmp_path / "preset.json"
    path.write_bytes(files.find(entry.preset) or b"")
    fast = swiftmask.apply_preset(swiftmask.load(tiny_folder), path)
    image = fast.generate([3], seeds=[0]).images[0]
    assert np.array_equal(np.array(image), np.array(sides[1].images[0]))


def test_files_are_dropped_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swiftmask.studio.gallery._MOST_BYTES", 10)
    files = Files()
    first, second = files.add(b"x" * 6, "png"), files.add(b"y" * 6, "png")
    assert files.find(first) is None and files.find(second) == b"y" * 6
    assert files.find("guessed.png") is None


def test_numbers_that_the_model_takes_anyway_are_not_asked_for(service: ImageService) -> None:
    own = service.catalogue.variants["tiny+shortcut"].pipeline
    full = sum(step.full for step in own.schedule())
    chosen = knobs(steps=own.steps, full_steps=full, baseline_steps=service.catalogue.base.steps)
    changed = changed_knobs(chosen, service.catalogue)
    assert (changed.steps, changed.full_steps, changed.baseline_steps) == (None, None, None)
    fewer = changed_knobs(replace(chosen, steps=own.steps - 1), service.catalogue)
    assert (fewer.steps, fewer.full_steps) == (own.steps - 1, full), "of other steps, so many are full"
    assert changed_knobs(knobs(variant="tiny+reuse"), service.catalogue).full_steps == 2


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"full_steps": 5}, "full_steps must be at most steps"),
        ({"guidance": 0.5}, "guidance must be a number between 1 and 100"),
        ({"what": ("9",)}, "unknown class '9'"),
        ({"size": "big"}, "size must be auto or WIDTHxHEIGHT"),
        ({"image": Image.new("RGB", (16, 16)), "mask": None}, "larger than the model's"),
    ],
)
def test_mistakes_are_told_in_one_line(
    service: ImageService, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RequestError) as error:
        followed(service, knobs(**changes))
    assert complaint in error.value.message
    assert "\n" not in error.value.message


def test_what_is_written_into_the_page_is_no_markup(service: ImageService) -> None:
    sides, _ = followed(service, knobs())
    hostile = "<img src=x onerror=alert(1)>"
    page = markup.comparison(sides, (hostile, hostile)) + markup.message(hostile) + markup.told(hostile)
    entry = replace(entry_of(sides, knobs(), service.catalogue, Files()), title=hostile, settings=hostile)
    page += markup.gallery([entry]) + markup.costs(
        [Line(name=hostile, full=[True], flops=1, seconds=None)] * 2, 1
    )
    assert hostile not in page and page.count("&lt;img src=x") == 10


def test_costs_before_a_click() -> None:
    estimates = Estimates(pace=lambda flops, images: flops / 1e9)
    assert estimates.seconds("fast", 10**9, 1) == 1.0
    estimates.remember("fast", 10**9, 0.25)
    assert estimates.seconds("fast", 2 * 10**9, 1) == 0.5 and estimates.seconds("other", 10**9, 1) == 1.0
    assert Estimates().seconds("fast", 10**9, 1) is None
    assert [times_fewer(*pair) for pair in ((10, 4), (4, 10), (10, 10))] == [
        "2.5 times fewer",
        "2.5 times more",
        "as many",
    ]
    lines = [
        Line(name=name, full=full, flops=10**9, seconds=0.5)
        for name, full in (("a", [True]), ("b", [True, False]))
    ]
    page = markup.costs(lines, 2)
    assert (
        "1 step, all full" in page and "2 steps, 1 full" in page and "2 images each: about 2 s in all" in page
    )


def test_colours_are_the_reports() -> None:
    css = markup.style()
    assert css.count("--full:") == 2 and ".dark { color-scheme: dark;" in css
    assert "color-scheme: light dark" not in css


def test_both_requests_share_seeds_and_sampling(service: ImageService) -> None:
    chosen = knobs(num_images=2, seed=4, baseline_steps=8, temperature=0.8)
    full, fast = requests_of(chosen, service.catalogue, service.settings.requests)
    assert full.seeds == fast.seeds == [4, 5] and full.sampling == fast.sampling
    assert (full.steps, full.full_steps, fast.steps, fast.full_steps) == (8, None, 4, 2)
