"""Cached latents: what is stored, that a killed run continues exactly, and what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from swiftmask.data.images import CachedLatents, CacheIndex, ImageFolder, cache_latents

SIZE, NUM = 8, 11
LOGVARS = (-40.0, 0.0, 3.0, 22.0)


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Eleven images of three classes."""
    random = np.random.default_rng(0)
    for i in range(NUM):
        path = tmp_path / "images" / "abc"[i // 4] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8 + i, 9, 3), np.uint8)).save(path)
    return ImageFolder.open(tmp_path / "images", SIZE)


def encode(images_B3HW: Tensor) -> Tensor:
    """Moments [B, 6, 4, 4]: local means, and a log-variance for each column."""
    assert images_B3HW.dtype == torch.float32 and images_B3HW.min() >= -1 and images_B3HW.max() <= 1
    mean_BCHW = F.avg_pool2d(images_B3HW, 2)
    return torch.cat([mean_BCHW, mean_BCHW * 0 + torch.tensor(LOGVARS)], dim=1)


def cache(folder: ImageFolder, out: Path, **changes: object) -> CacheIndex:
    settings: dict = {"encode_moments": encode, "encoder": "toy", "batch_size": 4} | changes
    return cache_latents(folder, settings.pop("encode_moments"), out, **settings)


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_every_image_and_its_mirror_are_stored(
    folder: ImageFolder, tmp_path: Path, dtype: torch.dtype, error: float
) -> None:
    index = cache(folder, tmp_path / "out", dtype=dtype)
    assert sorted(contents(tmp_path / "out")) == ["images.npy", "index.json", "moments.npy"]
    assert (index.done, index.moments, index.unreadable) == (NUM, (6, 4, 4), ())
    latents = CachedLatents.open(tmp_path / "out", scale=1.0)
    images_B3HW = folder.images(range(NUM)) * 2 - 1
    every_X = torch.arange(NUM)
    for mirrored, pictures_B3HW in ((False, images_B3HW), (True, images_B3HW.flip(-1))):
        stored = latents._read(every_X, torch.full((NUM,), mirrored))
        torch.testing.assert_close(stored, encode(pictures_B3HW), rtol=error, atol=error)
    assert np.load(tmp_path / "out/moments.npy", mmap_mode="r").shape == (NUM, 2, 6, 4, 4)
    assert torch.equal(latents.labels_X, folder.labels_X)
    assert latents.class_names == ("a", "b", "c")


def test_draws_sample_the_posterior_of_image_or_mirror(folder: ImageFolder, tmp_path: Path) -> None:
    cache(folder, tmp_path / "out")
    latents = CachedLatents.open(tmp_path / "out", scale=0.5)
    assert len(latents) == NUM
    indices_B = torch.full((4000,), 7)
    drawn_BCHW = latents.draw(indices_B, torch.Generator().manual_seed(0))
    assert (drawn_BCHW.shape, drawn_BCHW.dtype) == ((4000, 3, 4, 4), torch.float32)
    image_3HW = folder.images([7])[0] * 2 - 1
    image_CHW, mirror_CHW = (encode(x[None])[0, :3].half().float() for x in (image_3HW, image_3HW.flip(-1)))
    # Column 0 has no noise to speak of, so it tells image from mirror.
    first_BCH = drawn_BCHW[..., 0]
    is_mirror_B = (first_BCH - mirror_CHW[..., 0] / 2).abs().amax((1, 2)) < 1e-5
    assert (is_mirror_B ^ ((first_BCH - image_CHW[..., 0] / 2).abs().amax((1, 2)) < 1e-5)).all()
    assert 0.46 < is_mirror_B.float().mean() < 0.54
    noisy_XCHW = drawn_BCHW[~is_mirror_B]
    torch.testing.assert_close(noisy_XCHW[..., 1].mean(0), image_CHW[..., 1] / 2, rtol=0, atol=0.05)
    for column, logvar in ((1, 0.0), (2, 3.0), (3, 20.0)):  # 22 is clamped to 20
        std = 0.5 * np.exp(logvar / 2)
        assert noisy_XCHW[..., column].std(0).mean() == pytest.approx(std, rel=0.03)


def test_draws_are_a_function_of_indices_and_generator(folder: ImageFolder, tmp_path: Path) -> None:
    cache(folder, tmp_path / "out")
    latents, indices_B = CachedLatents.open(tmp_path / "out", scale=1.0), torch.tensor([3, 3, 0])
    first, again = (latents.draw(indices_B, torch.Generator().manual_seed(5)) for _ in range(2))
    other = latents.draw(indices_B, torch.Generator().manual_seed(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first[0], first[1])


def kill_at_call(number: int, work: Callable) -> Callable:
    """`work`, interrupted at one of its calls."""
    calls = []

    def interrupted(*args: object) -> object:
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return work(*args)

    return interrupted


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_run_killed_while_encoding_continues_exactly(
    folder: ImageFolder, tmp_path: Path, number: int
) -> None:
    cache(folder, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        cache(folder, tmp_path / "killed", encode_moments=kill_at_call(number, encode))
    calls, seen = [], []
    index = cache(
        folder,
        tmp_path / "killed",
        encode_moments=lambda images: calls.append(len(images)) or encode(images),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert index.done == NUM
    done = max(number - 2, 0) * 4  # the first call only asks for the shape
    assert seen == [(n, NUM) for n in (0, 4, 8, 11) if n >= done]
    assert sum(calls) == 2 * (NUM - done) + (2 if number == 1 else 0)


@pytest.mark.parametrize("step", ["write_rows", "os.replace"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_run_killed_while_writing_continues_exactly(
    folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    cache(folder, tmp_path / "whole")
    place = "swiftmask.data.images.cache.write_rows" if step == "write_rows" else "os.replace"
    work = os.replace if step == "os.replace" else cache_latents.__globals__["write_rows"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(place, kill_at_call(number, work))
        cache(folder, tmp_path / "killed")
    cache(folder, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_finished_cache_is_left_as_it_is(folder: ImageFolder, tmp_path: Path) -> None:
    index = cache(folder, tmp_path / "out")
    before, seen = contents(tmp_path / "out"), []
    again = cache(
        folder,
        tmp_path / "out",
        encode_moments=kill_at_call(1, encode),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert (again, seen) == (index, [(NUM, NUM)])
    assert contents(tmp_path / "out") == before


def test_unfinished_caches_are_not_trained_on(folder: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cache(folder, tmp_path / "out", encode_moments=kill_at_call(3, encode))
    with pytest.raises(ValueError, match="holds 4 of 11 images: run cache_latents again"):
        CachedLatents.open(tmp_path / "out", scale=1.0)
    with pytest.raises(FileNotFoundError, match=r"no .*absent/index\.json: expected a folder"):
        CachedLatents.open(tmp_path / "absent", scale=1.0)


def test_an_unreadable_image_stops_the_run_and_nothing_is_lost(folder: ImageFolder, tmp_path: Path) -> None:
    broken = folder.root / folder.files[6]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    message = (
        r"cannot read image .*b/06\.png \(.+\): repair or replace it, or leave such images out "
        r"\(max_unreadable=1\); the first 4 are kept in .*out"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=message) as error:
            cache(folder, tmp_path / "out")
        assert "\n" not in str(error.value)
    broken.write_bytes(whole)
    calls = []
    cache(folder, tmp_path / "out", encode_moments=lambda x: calls.append(len(x)) or encode(x))
    assert calls == [8, 6]
    cache(folder, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_unreadable_images_are_left_out_if_asked_and_listed(folder: ImageFolder, tmp_path: Path) -> None:
    """The others keep their labels and moments; also where a whole batch is lost, or a file vanishes."""
    lost = [4, 5, 6, 7, 10]
    for i in lost[:-1]:
        (folder.root / folder.files[i]).write_text("no image")
    (folder.root / folder.files[10]).unlink()
    with pytest.raises(ValueError, match=r"cannot read image .*10\.png \(No such file.*max_unreadable=5"):
        cache(folder, tmp_path / "out", max_unreadable=4)
    index = cache(folder, tmp_path / "out", max_unreadable=5)
    assert index.unreadable == tuple(folder.files[i] for i in lost)
    assert cache(folder, tmp_path / "out") == index
    latents = CachedLatents.open(tmp_path / "out", scale=1.0)
    kept = [i for i in range(NUM) if i not in lost]
    assert latents.labels_X.tolist() == [int(folder.labels_X[i]) for i in kept]
    stored = latents._read(torch.arange(len(latents)), torch.zeros(len(latents), dtype=torch.bool))
    torch.testing.assert_close(stored, encode(folder.images(kept) * 2 - 1), rtol=1e-3, atol=1e-3)


def test_what_was_left_out_once_needs_no_leave_again(folder: ImageFolder, tmp_path: Path) -> None:
    (folder.root / folder.files[1]).write_text("no image")
    with pytest.raises(KeyboardInterrupt):
        cache(folder, tmp_path / "out", encode_moments=kill_at_call(3, encode), max_unreadable=1)
    assert cache(folder, tmp_path / "out").unreadable == (folder.files[1],)
    (folder.root / folder.files[2]).write_text("no image either")
    with pytest.raises(ValueError, match=r"a/02\.png has changed"):
        cache(folder, tmp_path / "out", max_unreadable=2)


def test_changed_images_are_noticed(folder: ImageFolder, tmp_path: Path) -> None:
    """Of the same size too; a mere new date, as after copying the folder, is no change."""
    cache(folder, tmp_path / "out")
    copied = ImageFolder.open(
        shutil.copytree(folder.root, tmp_path / "copied", copy_function=shutil.copyfile), 8
    )
    for file in copied.files:
        os.utime(copied.root / file, (1, 1))
    assert cache(copied, tmp_path / "out").done == NUM
    path = copied.root / copied.files[2]
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a/02\.png has changed since it was encoded into .*out: restore it"
    ):
        cache(copied, tmp_path / "out")


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_other_images_are_noticed(folder: ImageFolder, tmp_path: Path, change: str) -> None:
    cache(folder, tmp_path / "out")
    path = folder.root / folder.files[3]
    if change == "added":
        shutil.copy(path, path.with_name("new.png"))
    else:
        shutil.move(path, path.with_name("new.png") if change == "renamed" else tmp_path / "gone.png")
    now = {"added": 12, "removed": 10, "renamed": 11}[change]
    with pytest.raises(ValueError, match=rf"added, removed or renamed .*\(11 then, {now} now\)"):
        cache(ImageFolder.open(folder.root, SIZE), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "other"}, "encoder 'toy' then, 'other' now"),
        ({"dtype": torch.bfloat16}, "dtype 'float16' then, 'bfloat16' now"),
    ],
)
def test_other_settings_are_refused(
    folder: ImageFolder, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    cache(folder, tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        cache(folder, tmp_path / "out", **changes)
    with pytest.raises(ValueError, match="image_size 8 then, 6 now"):
        cache(ImageFolder.open(folder.root, 6), tmp_path / "out")


def test_encoders_that_cannot_be_cached_are_refused(folder: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected moments \[2C, H, W\] .* got \(3, 8, 8\)"):
        cache(folder, tmp_path / "out", encode_moments=lambda images: images)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="float16 or bfloat16, got torch.float32"):
        cache(folder, tmp_path / "out", dtype=torch.float32)
    with pytest.raises(ValueError, match=r"moments of image a/00\.png are not finite in float16: .*bfloat16"):
        cache(folder, tmp_path / "out", encode_moments=lambda images: encode(images) * 1e5)
    cache(folder, tmp_path / "wide", encode_moments=lambda images: encode(images) * 1e5, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"gives moments \(6, 2, 2\), those in the cache are \(6, 4, 4\)"):
        cache(folder, tmp_path / "out", encode_moments=lambda images: F.avg_pool2d(encode(images), 2))


def test_places_that_cannot_hold_a_cache(
    folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="lies in the image folder"):
        cache(folder, folder.root / "cache")
    usage = type(shutil.disk_usage(tmp_path))(10, 9, 1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(
        ValueError, match=r"latents of 11 images need 0\.0 GB and .*out has 0\.0 GB left: free"
    ):
        cache(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["moments.npy", "images.npy"])
def test_truncated_and_missing_arrays_are_named(folder: ImageFolder, tmp_path: Path, name: str) -> None:
    cache(folder, tmp_path / "out")
    path = tmp_path / "out" / name
    for content in (path.read_bytes()[:-10], b"", None):
        path.unlink() if content is None else path.write_bytes(content)
        message = rf"{name} is missing or truncated .*: remove the folder and cache again"
        with pytest.raises(ValueError, match=message):
            CachedLatents.open(tmp_path / "out", scale=1.0)
        with pytest.raises(ValueError, match=message):
            cache(folder, tmp_path / "out")
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match=rf"{name} holds float64 \(3,\), expected .*: remove the folder"):
        CachedLatents.open(tmp_path / "out", scale=1.0)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"class_names": 3}', None])
def test_damaged_indices_are_named(folder: ImageFolder, tmp_path: Path, content: str | None) -> None:
    cache(folder, tmp_path / "out")
    path = tmp_path / "out/index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"more": 1}) if content is None else content)
    with pytest.raises(ValueError, match=r"index\.json.*: remove the folder and cache again"):
        CachedLatents.open(tmp_path / "out", scale=1.0)
